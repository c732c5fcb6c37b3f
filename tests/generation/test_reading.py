"""Encoder-decoders against `transformers`, against recomputing everything, and against themselves in other batches."""

from __future__ import annotations

import random

import pytest
import torch

from generation.comparison import GREEDY, SAMPLED, Sources, changed, check_same, common_tokens, their_tokens
from trivium.errors import UserError
from trivium.generation import reading
from trivium.generation.filters import Past, build_pipe
from trivium.generation.generate import Generation, generate, stream
from trivium.generation.sampling import draw, sequence_seed, uniform
from trivium.generation.settings import GenerationSettings
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.tokenizer.bpe import Tokenizer

WITH_RULES = GenerationSettings(
    max_new_tokens=40, repetition_penalty=1.2, no_repeat_ngram_size=2, min_new_tokens=5, forced_bos_id=120,
    forced_eos_id=1, suppressed_ids=(130, 131),
)  # fmt: skip


@pytest.mark.parametrize("settings", [changed(GREEDY, max_new_tokens=64), WITH_RULES], ids=["greedy", "rules"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_tokens_equal_transformers(
    kind: str, settings: GenerationSettings, request: pytest.FixtureRequest, source_tokenizer: Tokenizer,
    sources: Sources,
) -> None:  # fmt: skip
    """Sources of unequal length, one of them with a single token; without ends, and with many."""
    theirs, ours = request.getfixturevalue(kind), request.getfixturevalue(f"our_{kind}")
    ends = [] if settings.ignore_eos else common_tokens(ours, source_tokenizer, sources)
    few = sources[:8]
    found = [g.tokens for g in generate(ours, source_tokenizer, few, settings, eos_ids=ends)]
    assert found == their_tokens(theirs, few, settings, ends)
    assert len({token for tokens in found for token in tokens}) > 10  # the texts are not one token repeated
    assert settings.ignore_eos or len({len(tokens) for tokens in found}) > 2


def recomputed(model: EncoderDecoder, source: list[int], settings: GenerationSettings, seed: int) -> Generation:
    """The slow path: no cache, no memory, no batch, no padding; everything is read again for every token."""
    ids, logprobs, pipe = [model.config.decoder_start_id], [], build_pipe(settings, forces=True)
    for step in range(settings.max_new_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([source]), torch.tensor([ids]))[:, -1]
        seen = torch.zeros_like(scores, dtype=torch.bool)
        seen[0, ids] = True
        filtered = pipe(scores, Past([ids], [step], [settings.max_new_tokens], seen))
        token = int(filtered.argmax() if settings.greedy else draw(filtered, [uniform(seed, step)]))
        logprobs.append(scores.log_softmax(-1)[0, token].item())
        ids.append(token)
    return Generation("", ids[1:], logprobs, "length", len(source), 0.0)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["our_t5", "our_bart"])
def test_cached_equals_recomputed_and_batches_change_nothing(
    kind: str, settings: GenerationSettings, request: pytest.FixtureRequest, source_tokenizer: Tokenizer,
    sources: Sources, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(reading, "CACHE_STEP", 3)  # so that the cache must grow on the way
    model = request.getfixturevalue(kind).double()  # scores of random weights magnify every rounding
    slow = [recomputed(model, s, settings, sequence_seed(settings.seed, i)) for i, s in enumerate(sources[:8])]
    check_same(generate(model, source_tokenizer, sources[:8], settings), slow)
    together = generate(model, source_tokenizer, sources, settings)
    check_same(together[:8], slow)
    check_same(generate(model, source_tokenizer, sources, changed(settings, rows_per_batch=7)), together)


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "relative", "alibi", "none"])
def test_every_kind_of_positions(positions: str, source_tokenizer: Tokenizer, sources: Sources) -> None:
    config = ModelConfig(
        kind="encoder-decoder", vocab_size=400, width=32, layers=1, decoder_layers=2, heads=4, positions=positions,
        max_positions=90, init_std=0.3,
    )  # fmt: skip
    model = build_model(config)
    initialise(model, config, seed=0)
    slow = [recomputed(model, source, GREEDY, 0) for source in sources[:10]]
    check_same(generate(model, source_tokenizer, sources[:10], GREEDY), slow)


def check_padding_is_exact(model: EncoderDecoder, tokenizer: Tokenizer, source: list[int], filler: list[int]) -> None:
    """With 0 to 64 pads behind it, a source gives the target it gives alone."""
    short = changed(GREEDY, max_new_tokens=8)
    alone = generate(model, tokenizer, [source], short)
    for pads in range(65):
        check_same(generate(model, tokenizer, [source, filler[: len(source) + pads]], short)[:1], alone)


def test_padding_is_exact(our_t5: EncoderDecoder, source_tokenizer: Tokenizer, text: str) -> None:
    ids = source_tokenizer.encode(text)
    check_padding_is_exact(our_t5.double(), source_tokenizer, ids[:9], ids[100:200])


def test_the_check_sees_attended_padding(
    our_t5: EncoderDecoder, source_tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: padding without segments, so that targets attend to it."""
    padded = reading.padded
    monkeypatch.setattr(reading, "padded", lambda *given, **named: (padded(*given, **named)[0], None))
    ids = source_tokenizer.encode(text)
    with pytest.raises(AssertionError):
        check_padding_is_exact(our_t5.double(), source_tokenizer, ids[:9], ids[100:200])


def test_rows_that_end_early_take_their_source_with_them(
    our_bart: EncoderDecoder, source_tokenizer: Tokenizer, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the broken control: a memory that stays behind gives other rows the wrong source."""
    ends = common_tokens(our_bart, source_tokenizer, sources)
    settings = changed(SAMPLED, ignore_eos=False, max_new_tokens=40)

    def check() -> None:
        together = generate(our_bart, source_tokenizer, sources, settings, eos_ids=ends)
        alone = [
            generate(our_bart, source_tokenizer, [s], settings, seeds=[sequence_seed(11, i)], eos_ids=ends)[0]
            for i, s in enumerate(sources)
        ]
        check_same(together, alone)
        assert len({len(g.tokens) for g in together}) > 6

    check()
    reorder = reading.Reading.reorder

    def broken(batch: reading.Reading, index: list[int], *, same_sources: bool = False) -> None:
        kept = batch.memory
        reorder(batch, index, same_sources=same_sources)
        first = torch.arange(len(index))
        batch.memory = kept.reorder(first) if kept is not None else None

    monkeypatch.setattr(reading.Reading, "reorder", broken)
    with pytest.raises(AssertionError):
        check()


def test_the_source_is_encoded_once(
    our_t5: EncoderDecoder, source_tokenizer: Tokenizer, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("encode", "memory"):
        method = getattr(our_t5, name)
        monkeypatch.setattr(our_t5, name, lambda *a, m=method, n=name, **k: calls.append(n) or m(*a, **k))
    generate(our_t5, source_tokenizer, sources[:5], GREEDY)
    assert calls == ["encode", "memory"]


def test_texts_are_wrapped_and_streamed(our_bart: EncoderDecoder, source_tokenizer: Tokenizer) -> None:
    """A source given as text is what `wrap` makes of it; blanks in it are tokens, other special tokens are text."""

    def tokens(source: str | list[int]) -> list[int]:
        return generate(our_bart, source_tokenizer, [source], GREEDY)[0].tokens

    encode, blank = source_tokenizer.encode, source_tokenizer.sentinel_ids[0]
    assert tokens("def wrap(text):") == tokens([*encode("def wrap(text):"), 1])
    assert tokens("def <extra_id_0>(text):") == tokens([*encode("def "), blank, *encode("(text):"), 1])
    assert tokens("</s> ends") == tokens([*encode("</s> ends"), 1])
    assert tokens("") == tokens([1])
    with pytest.raises(UserError, match="holds a blank to fill and also '</s>'"):
        tokens("def <extra_id_0>(text): </s>")
    pieces = list(stream(our_bart, source_tokenizer, "def wrap(text):", SAMPLED))
    assert len(pieces) > 3
    assert "".join(pieces) == generate(our_bart, source_tokenizer, ["def wrap(text):"], SAMPLED)[0].text


def test_stop_strings(our_bart: EncoderDecoder, source_tokenizer: Tokenizer, sources: Sources) -> None:
    free = generate(our_bart, source_tokenizer, sources[:1], SAMPLED)[0]
    stop = free.text[5:8]
    assert len(stop) == 3
    cut = generate(our_bart, source_tokenizer, sources[:1], changed(SAMPLED, stop=[stop]))[0]
    assert cut.text == free.text[: free.text.find(stop)] and cut.finish_reason == "stop"


def test_long_sources(our_t5: EncoderDecoder, our_bart: EncoderDecoder, source_tokenizer: Tokenizer) -> None:
    """Learned positions end; others only promise."""
    rng = random.Random(0)
    long = [rng.randrange(110, 400) for _ in range(our_t5.config.max_positions + 1)]
    few = changed(GREEDY, max_new_tokens=2)
    assert len(generate(our_t5, source_tokenizer, [long], few)[0].tokens) == 2
    assert len(generate(our_bart, source_tokenizer, [long[:128]], few)[0].tokens) == 2
    with pytest.raises(UserError, match=r"prompt 1 has 129 tokens .* learned 128 positions: shorten it"):
        generate(our_bart, source_tokenizer, [[5], long[:129]], few)
    (full,) = generate(our_bart, source_tokenizer, [[5]], changed(GREEDY, max_new_tokens=1000))
    assert len(full.tokens) == our_bart.config.max_positions and full.finish_reason == "length"


def test_refusals(our_t5: EncoderDecoder, source_tokenizer: Tokenizer) -> None:
    for wish in ({"speculate": 3}, {"kv_cache": "int8"}):
        with pytest.raises(UserError, match="speculate and kv_cache are for decoders"):
            generate(our_t5, source_tokenizer, [[5]], changed(GREEDY, **wish))
    with pytest.raises(UserError, match="prompt 0 holds an id outside the model's vocabulary of 400"):
        generate(our_t5, source_tokenizer, [[400]], GREEDY)
    with pytest.raises(UserError, match="forced_bos_id or forced_eos_id holds an id outside"):
        generate(our_t5, source_tokenizer, [[5]], changed(GREEDY, forced_bos_id=400))
    config = ModelConfig(kind="encoder", vocab_size=400, width=32, layers=1, heads=4)
    with pytest.raises(UserError, match=r"generation needs a decoder or an encoder-decoder .*: use fill-mask"):
        generate(build_model(config), source_tokenizer, [[5]], GREEDY)  # type: ignore[arg-type]
    classifier = ModelConfig(vocab_size=400, width=32, layers=1, heads=4, head="classification", labels=("a", "b"))
    with pytest.raises(UserError, match="this model is a decoder with a classification head: use classify"):
        generate(build_model(classifier), source_tokenizer, [[5]], GREEDY)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions(
    dtype: torch.dtype, num_beams: int, our_bart: EncoderDecoder, source_tokenizer: Tokenizer, sources: Sources
) -> None:
    """Cache and memory have the precision of the weights; under autocast, products have that of autocast."""
    settings = changed(GREEDY, num_beams=num_beams)
    full = generate(our_bart, source_tokenizer, sources, settings)
    with torch.autocast("cpu", dtype):
        mixed = generate(our_bart, source_tokenizer, sources, settings)
    other = generate(our_bart.to(dtype), source_tokenizer, sources, settings)
    for found in (mixed, other):
        assert sum(a.tokens[0] == b.tokens[0] for a, b in zip(full, found, strict=True)) >= 30
