"""What the tests of the decoder families share, beside `parity.py`: greedy texts that vary, of prompts that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from families.parity import random_ids, without_repeats
from families.two_stacks import small_tokenizer
from trivium.generation.generate import generate
from trivium.generation.settings import GenerationSettings
from trivium.models.build import Model
from trivium.models.cache import Cache
from trivium.models.decoder import Decoder

LONGEST = 12


@torch.no_grad()
def check_generation(reference: Any, model: Model, tokens: int = 64) -> None:
    """Tokens after prompts of 12, 9 and 1 in one batch, padded on the left, are those of `transformers`: greedily, and
    by beam search.

    No pair of tokens comes twice, since a tiny model would repeat one token for ever: 64 tokens are then at least 8
    different ones. Ours are computed with a cache, and without.
    """
    assert isinstance(model, Decoder)
    ids, segments = prompts(model)
    if model.config.positions == "learned":
        tokens = min(tokens, model.config.max_positions - LONGEST)
    common = {
        "attention_mask": segments.long(),
        "max_new_tokens": tokens,
        "do_sample": False,
        "no_repeat_ngram_size": 2,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    check_search(reference, model, ids, segments, common)
    expected = reference.generate(ids, **common)
    for cached in (True, False):
        found = greedy(model, ids, segments, tokens, cached=cached)
        assert found.tolist() == expected.tolist(), f"tokens differ, cached: {cached}"


def check_search(reference: Any, model: Decoder, ids: Tensor, segments: Tensor, common: dict[str, Any]) -> None:
    """The best of four beams, of prompts in one batch here and of each alone there, whose cache is used or not.

    Alone, since `transformers` counts padding as text in which a pair of tokens has been seen.
    """
    texts = [row[real > 0].tolist() for row, real in zip(ids, segments, strict=True)]
    chosen = GenerationSettings(
        max_new_tokens=common["max_new_tokens"], num_beams=4, no_repeat_ngram_size=2, ignore_eos=True
    )
    found = generate(model, small_tokenizer(), texts, chosen)
    for text, written, use_cache in zip(texts, found, (True, False, True), strict=True):
        alone = {**common, "attention_mask": torch.ones(1, len(text), dtype=torch.long)}
        expected = reference.generate(torch.tensor([text]), **alone, num_beams=4, use_cache=use_cache)
        assert written.tokens == expected[0, len(text) :].tolist(), f"beams differ, their cache: {use_cache}"


def prompts(model: Model) -> tuple[Tensor, Tensor]:
    """Ids and segments of three prompts of different lengths."""
    ids = random_ids(model.config, 3, LONGEST, seed=9)
    segments = torch.ones_like(ids, dtype=torch.int32)
    for row, length in enumerate((LONGEST, 9, 1)):
        segments[row, : LONGEST - length] = 0
    return ids * segments, segments


def greedy(model: Decoder, ids: Tensor, segments: Tensor, tokens: int, *, cached: bool) -> Tensor:
    """The prompts and the likeliest tokens after them, but for those that would repeat a pair."""
    cache = Cache.empty(model.config, len(ids), 8, "cpu", torch.float32) if cached else None
    fresh, its_segments = ids, segments
    for _ in range(tokens):
        given = (fresh, its_segments) if cached else (ids, segments)
        hidden, cache = model.hidden(given[0], segments=given[1], cache=cache)
        scores = without_repeats(model.logits(hidden[:, -1]), ids)
        fresh, its_segments = scores.argmax(-1, keepdim=True), torch.ones_like(segments[:, :1])
        ids, segments = torch.cat((ids, fresh), 1), torch.cat((segments, its_segments), 1)
    return ids
