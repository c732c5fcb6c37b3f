"""What a verb computes at once, against what generation really batches and what tokenizers really make of text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from trivium.generation import encoding, scoring
from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.planner.uses import TOKENS_PER_BATCH, Use, num_tokens, reading, talking, use_memory, writing
from trivium.quantization.schemes import scheme_for
from trivium.tokenizer.bpe import Tokenizer

TEXT = Path(textwrap.__file__).read_text()


def config_of(kind: str = "decoder", **more: object) -> ModelConfig:
    shape = {"kind": kind, "vocab_size": 4096, "width": 64, "layers": 2, "heads": 4, "max_positions": 1024}
    return ModelConfig(**{**shape, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab_size", [300, 512, 2048])
def test_tokens_are_not_counted_too_few(vocab_size: int) -> None:
    tokenizer, config = Tokenizer.train(texts=[TEXT], vocab_size=vocab_size), config_of(vocab_size=vocab_size)
    lines = [line for line in TEXT.splitlines() if len(line) > 20]
    assert len(tokenizer.encode(TEXT)) < num_tokens(config, TEXT)
    few = [line for line in lines if len(tokenizer.encode(line)) > num_tokens(config, line)]
    assert len(few) < 0.2 * len(lines)
    assert num_tokens(config, "") == 1


def test_texts_share_a_batch_as_they_do_when_they_are_read() -> None:
    assert TOKENS_PER_BATCH == encoding.TOKENS_PER_BATCH
    defaults = scoring.documents_logprobs.__kwdefaults__
    assert defaults is not None and defaults["tokens_per_batch"] == TOKENS_PER_BATCH
    assert reading(config_of(), ["a" * 300]) == Use(rows=1, length=101)
    assert reading(config_of(), ["a" * 300] * 200) == Use(rows=8192 // 101, length=101)
    # Whole, a text of 3001 tokens goes beyond the context, unless its positions are learned.
    assert reading(config_of(), ["a" * 9000, "b"]) == Use(rows=2, length=3001)
    assert reading(config_of(positions="learned"), ["a" * 9000, "b"]) == Use(rows=2, length=1024)
    # A text of 3001 tokens is read in windows of the context, of which eight share a batch.
    assert reading(config_of(), ["a" * 9000], windows=True) == Use(rows=3, length=1024)
    assert reading(config_of(), ["a" * 90000], windows=True) == Use(rows=8, length=1024)


def test_what_is_written_has_room_in_the_context() -> None:
    settings = GenerationSettings(max_new_tokens=256)
    assert writing(config_of(), "a" * 30, settings) == Use(1, 11, 256)
    assert writing(config_of(), "a" * 2700, settings) == Use(1, 901, 123)
    assert writing(config_of(), "a" * 27000, settings) == Use(1, 1024, 1)  # which generation refuses
    assert writing(config_of("encoder-decoder"), "a" * 2700, settings) == Use(1, 901, 256)
    assert writing(config_of("encoder-decoder"), "a" * 27000, settings) == Use(1, 9001, 256)
    learned = config_of("encoder-decoder", positions="learned")
    assert writing(learned, "a" * 27000, GenerationSettings(max_new_tokens=4096)) == Use(1, 1024, 1024)
    beams = GenerationSettings(max_new_tokens=8, num_beams=4)
    assert writing(config_of(), "", beams).num_beams == 4
    assert writing(config_of(), "", GenerationSettings(kv_cache="int8")).kv_int8
    assert talking(config_of(), settings, "Hello") == writing(config_of(), "Hello", settings)
    whole = talking(config_of(), settings, None)
    assert whole.length + whole.new_tokens == 1024


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_more_needs_more_and_packed_weights_need_less(kind: str) -> None:
    config = config_of(kind)

    def peak(use: Use, **how: object) -> int:
        return use_memory(config, use, "fp32", **how).peak_bytes  # type: ignore[arg-type]

    short = Use(1, 64, 64)
    assert peak(short) < peak(Use(4, 64, 64)) < peak(Use(4, 64, 900))
    assert peak(short) < peak(Use(1, 900, 64)) and peak(short) < peak(Use(1, 64, 64, num_beams=4))
    assert peak(Use(1, 64)) < peak(Use(8, 1024))
    weights = [use_memory(config, short, "fp32", scheme).weights_bytes for scheme in (None, scheme_for("int8"))]
    assert weights[1] < 0.5 * weights[0]
