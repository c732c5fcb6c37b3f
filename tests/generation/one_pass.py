"""What a text should have been: every token chosen again from one fresh pass over the whole text, without any cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trivium.generation.filters import Past
from trivium.generation.rows import Row, Rules, build_rows, build_rules
from trivium.generation.sampling import draw, uniform
from trivium.generation.settings import GenerationSettings
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer


def row_of(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: list[int],
    settings: GenerationSettings,
    *,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
) -> tuple[Row, Rules]:
    """A text that is yet to be written, and its rules."""
    (row,) = build_rows(model.config, tokenizer, [prompt], settings, [seed])
    return row, build_rules(model.config, tokenizer, settings, eos_ids)


@torch.inference_mode()
def check_row(model: Decoder, row: Row, rules: Rules, tolerance: float = 1e-5) -> float:
    """Every token of a text is the one that its place calls for; returns by how much a log-probability is off."""
    settings, count, before = rules.settings, len(row.tokens), len(row.prompt)
    logits_TV = model(torch.tensor([[*row.prompt, *row.tokens[:-1]]]))[0, before - 1 :]
    for step in range(count):
        ids = [*row.prompt, *row.tokens[:step]]
        seen_1V = torch.zeros(1, logits_TV.shape[1], dtype=torch.bool)
        seen_1V[0, ids] = True
        scores = rules.pipe(logits_TV[step : step + 1].float(), Past([ids], [step], [row.limit], seen_1V))
        token = scores.argmax(-1) if settings.greedy else draw(scores, [uniform(row.seed, step)])
        assert row.tokens[step] == int(token), f"token {step} of {count}"
    expected = logits_TV.float().log_softmax(-1).gather(1, torch.tensor(row.tokens)[:, None])[:, 0]
    off = (expected - torch.tensor(row.logprobs)).abs().max().item()
    assert off <= tolerance
    ended = row.tokens[-1] in rules.ends
    assert row.finish_reason == ("stop" if ended else "length") and (ended or count == row.limit)
    assert not set(row.tokens[:-1]) & rules.ends
    return off
