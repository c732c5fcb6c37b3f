"""Whether two models are the same: one, and what was written of it and read back.

Both see 32 texts. What a model says of them is compared where it is used: a causal model's scores of the next token at
each position and the texts it goes on with; a masked model's scores, with one token of each text masked, and what it
fills in; an encoder-decoder's scores of the target that the source model writes, and the targets both write; a
classifier's probabilities; of anything else the numbers themselves. KL is the Kullback-Leibler divergence of the
written model's distribution from the source's, sum p log(p / q) in nats, in fp64.

Invariant (tested): a model and itself have a KL of 0, agree everywhere and write the same texts; a model with one
layer's queries in another order does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trivium.checkpoints.verification_prompts import PROMPTS
from trivium.generation.generate import generate
from trivium.generation.prompts import encode_prompt
from trivium.generation.settings import GenerationSettings
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.checkpoints.bundle import Bundle

# Tokens that each text is continued by.
NEW_TOKENS = 32
# Divergence in nats, or difference relative to the largest number, up to which a written model passes: fp32 is the
# model itself up to the order of sums; the others are as coarse as their format is.
TOLERANCES = {"fp32": 1e-6, "fp16": 1e-2, "bf16": 5e-2, "q8_0": 5e-2, "q4_0": 1.0}
CLASSES = ("lm", "classification", "token_classification")


@dataclass(frozen=True)
class Verification:
    """How near a written model is to its source; None for what such a model has not."""

    prompts: int
    """How many texts were tried."""
    same_ids: int
    """Of how many of them both tokenizers make the same ids."""
    positions: int = 0
    """How many distributions were compared."""
    kl_mean: float | None = None
    """Mean divergence of the distributions, in nats."""
    kl_max: float | None = None
    """The largest of them."""
    top1_agreement: float | None = None
    """Share of the positions where both have the same likeliest token or class."""
    same_texts: int | None = None
    """How many texts both continue, fill or translate alike."""
    largest_difference: float | None = None
    """Of numbers that are no distribution: the largest difference, relative to the largest number."""

    def passes(self, dtype: str) -> bool:
        """Whether the written model is as near to its source as weights in `dtype` allow."""
        distance = self.largest_difference if self.kl_mean is None else self.kl_mean
        return self.same_ids == self.prompts and distance is not None and distance <= TOLERANCES[dtype]

    def to_json(self) -> dict[str, int | float]:
        """The figures that such a model has."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def rows(self) -> dict[str, str]:
        """The same for people."""
        rows = [
            ("prompts tokenized alike", f"{self.same_ids} of {self.prompts}"),
            ("distributions compared", f"{self.positions:,}" if self.positions else None),
            ("KL divergence, mean", _nats(self.kl_mean)),
            ("KL divergence, largest", _nats(self.kl_max)),
            ("same likeliest token or class", None if self.top1_agreement is None else f"{self.top1_agreement:.2%}"),
            ("same greedy text", None if self.same_texts is None else f"{self.same_texts} of {self.prompts}"),
            (
                "largest relative difference",
                None if self.largest_difference is None else f"{self.largest_difference:.1e}",
            ),
        ]
        return {name: value for name, value in rows if value is not None}

    def to_markdown(self) -> str:
        """A table for a README."""
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in self.rows().items())])


def compare(
    source: Bundle, written: Bundle, prompts: Sequence[str] = PROMPTS, *, progress: Progress = SILENT
) -> Verification:
    """Try both models on `prompts`."""
    rows = [_ids(source, text) for text in prompts]
    found = Verification(len(prompts), sum(row == _ids(written, text) for row, text in zip(rows, prompts, strict=True)))
    targets: list[list[int]] = [[] for _ in prompts]
    if _writes(source):
        texts, targets = _generated(source, rows, progress)
        others, _ = _generated(written, rows, progress)
        found = replace(found, same_texts=sum(one == two for one, two in zip(texts, others, strict=True)))
    progress.start("comparing what was written with the source", len(prompts), "prompts")
    divergences: list[Tensor] = []
    agreements: list[Tensor] = []
    fills = 0
    difference = largest = 0.0
    for row, target in zip(rows, targets, strict=True):
        read, masked = _masked(source, row)
        one, two = (_outputs(bundle, read, target) for bundle in (source, written))
        if source.config.head in CLASSES and source.config.head_outputs > 1:
            logs, other = one.log_softmax(-1), two.log_softmax(-1)
            divergences.append((logs.exp() * (logs - other)).sum(-1).clamp_min(0))
            agreements.append(one.argmax(-1) == two.argmax(-1))
            fills += masked is not None and bool(agreements[-1][masked])
        else:
            difference = max(difference, float((one - two).abs().max()))
            largest = max(largest, float(one.abs().max()))
        progress.advance()
    progress.finish()
    if not divergences:
        return replace(found, largest_difference=difference / (largest or 1.0))
    kl, agree = torch.cat(divergences), torch.cat(agreements)
    if masked is not None:
        found = replace(found, same_texts=fills)
    return replace(
        found,
        positions=kl.numel(),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(agree.double().mean()),
    )


class Row(NamedTuple):
    """One text as a model reads it."""

    ids: list[int]
    types: list[int]


def _writes(bundle: Bundle) -> bool:
    """Whether the model generates text."""
    return bundle.config.kind != "encoder" and bundle.config.head == "lm"


def _ids(bundle: Bundle, text: str) -> Row:
    """The ids of a text, as many as the model has positions for."""
    tokenizer, room = bundle.tokenizer, bundle.config.max_positions
    if bundle.config.kind == "decoder":
        ids = encode_prompt(tokenizer, text, GenerationSettings())
        types = [0] * len(ids)
    else:
        ids, types = tokenizer.wrap(tokenizer.encode(text))
    room = max(1, room - NEW_TOKENS) if _writes(bundle) else room
    return Row(ids[:room], types[:room])


def _masked(bundle: Bundle, row: Row) -> tuple[Row, int | None]:
    """The row with its middle token masked, and which it is, for a masked language model."""
    mask = bundle.tokenizer.mask_id
    if bundle.config.kind != "encoder" or bundle.config.head != "lm" or mask is None:
        return row, None
    place = len(row.ids) // 2
    return Row([*row.ids[:place], mask, *row.ids[place + 1 :]], row.types), place


@torch.inference_mode()
def _outputs(bundle: Bundle, row: Row, target: list[int]) -> Tensor:
    """What the model makes of a row, (N, C) fp64: C numbers of the head at N positions (1 for a text as a whole)."""
    model, device = bundle.model, bundle.model.device

    def batch(ids: list[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.int64, device=device)

    if isinstance(model, Decoder):
        output = model(batch(row.ids))
    elif isinstance(model, EncoderDecoder):
        output = model(batch(row.ids), batch([bundle.config.decoder_start_id, *target]))
    else:
        output = model(batch(row.ids), types=batch(row.types) if bundle.config.segment_types else None)
    return output.double().cpu().reshape(-1, output.shape[-1] if output.dim() > 1 else 1)  # type: ignore[no-any-return]


def _generated(bundle: Bundle, rows: Sequence[Row], progress: Progress) -> tuple[list[str], list[list[int]]]:
    """What a model goes on with, greedily: texts, and their ids."""
    assert not isinstance(bundle.model, Encoder)  # by its kind
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    results = generate(
        bundle.model, bundle.tokenizer, [row.ids for row in rows], settings, eos_ids=bundle.eos_ids or None
    )
    return [result.text for result in results], [result.tokens for result in results]


def _nats(value: float | None) -> str | None:
    return None if value is None else f"{value:.2e} nats"
