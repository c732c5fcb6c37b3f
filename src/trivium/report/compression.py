"""What fewer bits cost: a quantized model beside its original on real text, as a dict and a table.

Both read the same windows of text. Of token scores (a decoder's next token, an encoder's hidden tokens, the target of
an encoder-decoder) come the change of perplexity with its 95 % interval, KL and the share of equal likeliest tokens; of
other heads how alike the results are. Greedy continuations show where texts part, sizes and speeds what was won, and
the error of every block's parts where it was lost. Speeds are taken in turns, original and quantized, so that a machine
that slows down does so for both.

Invariants its tests check: a model against itself costs exactly nothing; shuffled scales cost more than true ones;
models of all three kinds have a report; the dict is plain JSON.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from trivium.checkpoints.bundle import Bundle
from trivium.data.masking import mask_tokens
from trivium.errors import UserError
from trivium.generation.generate import generate
from trivium.generation.prompts import document_start
from trivium.generation.settings import GenerationSettings
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.progress import SILENT, Progress, short_bytes
from trivium.quantization.error import (
    ScoredRows,
    compare,
    hidden_states,
    part_errors,
    results_alike,
    scored_states,
    weight_errors,
)
from trivium.quantization.quantize import tensors_bytes
from trivium.quantization.replacing import scheme_of

WINDOWS, WINDOW_TOKENS = 16, 512
"""How much of the text is scored, unless told otherwise."""
ROWS = 4
"""Windows read together."""
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 64
"""How many texts are continued greedily, from how much, by how much."""
ROUNDS = 3
"""How often each speed is taken; the median counts."""
WORST = 3
"""Parts named in the table."""
NOT_SCORED = -1


def compression_report(
    original: Bundle,
    quantized: Bundle,
    text: str | Sequence[str],
    *,
    windows: int = WINDOWS,
    window_tokens: int = WINDOW_TOKENS,
    prompts: int = PROMPTS,
    timed: bool = True,
    known: dict[str, Any] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Size, quality and speed of both, and the errors of the quantized one's parts: plain numbers, ready for JSON.

    `text` is scored in `windows` of `window_tokens` ids, or as many as it has; it should not be what the model was
    calibrated on. `prompts`: 0 leaves greedy texts and speeds out, `timed`: False speeds alone. `known` is a dict that
    reports on one original and one text may share: what was found of the original is kept in it for the next one.
    Raises UserError for text too short for a window.
    """
    known = {} if known is None else known
    rows = scored_rows(original, text, windows, window_tokens)
    scheme = scheme_of(quantized.model)
    before, after = tensors_bytes(original.model), tensors_bytes(quantized.model)
    report: dict[str, Any] = {
        "scheme": None if scheme is None else scheme.model_dump(mode="json"),
        "windows": sum(len(some.targets_BT) for some in rows),
        "window_tokens": rows[0].targets_BT.shape[1],
        "bytes": {"original": before, "quantized": after, "share": after / before},
        "quality": _quality(original, quantized, rows, known, progress),
        "greedy": None,
        "speed": None,
    }
    writes = original.config.kind != "encoder" and original.config.head == "lm"
    if prompts and writes:
        report["greedy"] = _greedy(original, quantized, rows, prompts, known, progress)
    if prompts and timed:
        report["speed"] = speeds(original, quantized, rows[0], writes)
    parts = part_errors(original.model, quantized.model, [rows[0].inputs], progress=progress)
    report["parts"] = {part.name: part.error for part in parts}
    folded = scheme is not None and scheme.method == "awq"  # its matrices are scaled, and cannot be compared one by one
    report["weights"] = {} if folded else weight_errors(original.model, quantized.model)
    return report


def compression_table(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a table: what, of the original, of the quantized model with the change."""
    size, quality = report["bytes"], report["quality"]
    shrunk = f"{short_bytes(size['quantized'])} ({size['share']:.0%})"
    rows = [("size in memory", short_bytes(size["original"]), shrunk), *_quality_rows(quality)]
    if (greedy := report["greedy"]) is not None:
        first = greedy["first_difference"]
        parted = "" if first is None else f", the others part after {first:.0f} tokens"
        whole = f"{greedy['whole']} of {greedy['prompts']} greedy texts whole{parted}"
        rows.append(("greedy text", "", f"{greedy['equal']:.1%} of tokens equal, {whole}"))
    for name, speed in (report["speed"] or {}).items():
        change = f"{speed['quantized']:,.0f} tokens/s ({speed['quantized'] / speed['original']:.2f} x)"
        rows.append((name, f"{speed['original']:,.0f} tokens/s", change))
    worst = sorted(report["parts"].items(), key=lambda item: -item[1])[:WORST]
    rows.append(("largest errors", "", ", ".join(f"{name} {error:.1%}" for name, error in worst)))
    return rows


def scored_rows(bundle: Bundle, text: str | Sequence[str], windows: int, window_tokens: int) -> list[ScoredRows]:
    """`text` as rows of equal length and what the bundle's model is to predict in them.

    A decoder predicts each next token, an encoder the 15 % that are hidden from it (seeded), an encoder-decoder each
    window from the one before it. Raises UserError for text too short for a window.
    """
    config, tokenizer = bundle.config, bundle.tokenizer
    ids = tokenizer.encode(text if isinstance(text, str) else "\n\n".join(text))
    kind = config.kind
    around = len(tokenizer.wrap([])[0]) if kind != "decoder" else 0
    # A short text is one short window.
    length = min(window_tokens, config.max_positions, len(ids) // (2 if kind == "encoder-decoder" else 1)) - around
    if length < 2:
        raise UserError("measuring what quantization costs: the text has too few tokens; give a longer one")
    made: Iterator[tuple[tuple[list[int], ...], list[int]]]
    starts = range(0, len(ids) - length + 1, length)
    if kind == "decoder":
        ids = [document_start(tokenizer), *ids]
        made = (((ids[start : start + length],), ids[start + 1 : start + 1 + length]) for start in starts)
    elif kind == "encoder":
        made = (
            _hidden(bundle, ids[start : start + length], start) for start in range(0, len(ids) - length + 1, length)
        )
    else:
        pieces = [tokenizer.wrap(ids[start : start + length])[0] for start in starts]
        pairs = zip(pieces[0::2], pieces[1::2], strict=False)
        made = (((source, [config.decoder_start_id, *target[:-1]]), target) for source, target in pairs)
    chosen = [row for row, _ in zip(made, range(windows), strict=False)]
    return [_rows(chosen[start : start + ROWS]) for start in range(0, len(chosen), ROWS)]


def _rows(rows: Sequence[tuple[tuple[list[int], ...], list[int]]]) -> ScoredRows:
    inputs = tuple(torch.tensor(part) for part in zip(*(given for given, _ in rows), strict=True))
    return ScoredRows(inputs, torch.tensor([targets for _, targets in rows]))


def _hidden(bundle: Bundle, ids: list[int], seed: int) -> tuple[tuple[list[int]], list[int]]:
    """An encoder's window with some tokens hidden, and these; without a mask token or token scores none are."""
    tokenizer = bundle.tokenizer
    wrapped = tokenizer.wrap(ids)[0]
    if tokenizer.mask_id is None or bundle.config.head != "lm":
        return (wrapped,), [NOT_SCORED] * len(wrapped)
    special = set(tokenizer.special_tokens.values())
    inputs, targets = mask_tokens(
        np.array(wrapped),
        np.random.default_rng(seed),
        mask_id=tokenizer.mask_id,
        ordinary_ids=np.array([token for token in range(tokenizer.vocab_size) if token not in special]),
        maskable=np.array([token not in special for token in wrapped]),
    )
    return (inputs.tolist(),), targets.tolist()


def _quality(
    original: Bundle, quantized: Bundle, rows: list[ScoredRows], known: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    if original.config.head != "lm" or not any(bool((some.targets_BT >= 0).any()) for some in rows):
        alike = results_alike(original.model, quantized.model, [some.inputs for some in rows], progress=progress)
        return {"measure": "results", "error": alike.error, "agreement": alike.agreement}
    if "states" not in known:
        known["states"] = [scored_states(original.model, some) for some in rows]
    found = compare(original.model, quantized.model, rows, states=known["states"], progress=progress)
    names = {"decoder": "perplexity", "encoder": "perplexity of hidden tokens", "encoder-decoder": "target perplexity"}
    return {
        "measure": names[original.config.kind],
        "tokens": found.positions,
        "nll": {"original": found.nll_original, "quantized": found.nll_quantized},
        "nll_change": found.change,
        "nll_interval": None if found.interval is None else list(found.interval),
        "perplexity": {"original": _exp(found.nll_original), "quantized": _exp(found.nll_quantized)},
        "perplexity_change": math.expm1(found.change),
        "perplexity_interval": None if found.interval is None else [math.expm1(end) for end in found.interval],
        "kl": found.kl,
        "agreement": found.agreement,
    }


def _quality_rows(quality: dict[str, Any]) -> list[tuple[str, str, str]]:
    if quality["measure"] == "results":
        rows = [("error of the results", "", f"{quality['error']:.2%}")]
        return rows + ([] if quality["agreement"] is None else [("same class", "", f"{quality['agreement']:.2%}")])
    ends = quality["perplexity_interval"]
    interval = "" if ends is None else f"; 95 %: {ends[0]:+.2%} to {ends[1]:+.2%}"
    both = quality["perplexity"]
    changed = f"{both['quantized']:.4g} ({quality['perplexity_change']:+.2%}{interval})"
    return [
        (quality["measure"], f"{both['original']:.4g}", changed),
        ("KL from the original", "", f"{quality['kl']:.3g} nats a token"),
        ("same likeliest token", "", f"{quality['agreement']:.2%}"),
    ]


def _greedy(
    original: Bundle,
    quantized: Bundle,
    rows: Sequence[ScoredRows],
    prompts: int,
    known: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """How much of the greedy continuations of the windows' beginnings (of an encoder-decoder: sources) is the same."""
    source = original.config.kind == "encoder-decoder"
    windows = [row for some in rows for row in some.inputs[0].tolist()][:prompts]
    given = windows if source else [row[:PROMPT_TOKENS] for row in windows]
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    if "texts" not in known:
        known["texts"] = [made.tokens for made in _generated(original, given, settings, progress)]
    texts = known["texts"], [made.tokens for made in _generated(quantized, given, settings, progress)]
    equal = total = whole = 0
    firsts: list[int] = []
    for expected, found in zip(*texts, strict=True):
        same = [a == b for a, b in zip(expected, found, strict=False)]
        equal, total = equal + sum(same), total + max(len(expected), len(found))
        if expected == found:
            whole += 1
        else:
            firsts.append(same.index(False) if False in same else len(same))
    return {
        "prompts": len(given),
        "tokens": total,
        "equal": equal / total,
        "whole": whole,
        "first_difference": statistics.fmean(firsts) if firsts else None,
    }


def _generated(bundle: Bundle, given: Sequence[Sequence[int]], settings: GenerationSettings, progress: Progress) -> Any:
    assert not isinstance(bundle.model, Encoder)  # by its kind
    eos_ids = bundle.eos_ids or None
    return generate(bundle.model, bundle.tokenizer, given, settings, eos_ids=eos_ids, progress=progress)


def speeds(original: Bundle, quantized: Bundle, rows: ScoredRows, writes: bool) -> dict[str, dict[str, float]]:
    """Tokens per second of both: reading one window, and writing one text after a short prompt."""
    window = tuple(part[:1] for part in rows.inputs)
    tokens = sum(part.numel() for part in window)
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS, ignore_eos=True)

    @torch.inference_mode()
    def read(bundle: Bundle) -> float:
        hidden_states(bundle.model, tuple(part.to(bundle.model.device) for part in window)).sum().item()
        return tokens

    def write(bundle: Bundle) -> float:
        prompt = window[0][0, : window[0].shape[1] if isinstance(bundle.model, EncoderDecoder) else 4].tolist()
        return len(_generated(bundle, [prompt], settings, SILENT)[0].tokens)

    found = {"reading": _in_turns(original, quantized, read)}
    if writes:
        found["writing"] = _in_turns(original, quantized, write)
    return found


def _in_turns(original: Bundle, quantized: Bundle, work: Callable[[Bundle], float]) -> dict[str, float]:
    """Median units of work per second of each, after one round that does not count."""
    taken: dict[str, list[float]] = {"original": [], "quantized": []}
    for _ in range(ROUNDS + 1):
        for name, bundle in (("original", original), ("quantized", quantized)):
            started = time.perf_counter()
            done = work(bundle)
            taken[name].append(done / (time.perf_counter() - started))
    return {name: statistics.median(rates[1:]) for name, rates in taken.items()}


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
