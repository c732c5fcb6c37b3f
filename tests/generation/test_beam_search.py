"""Beam search with models: the tokens are those of `transformers`; batches change nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import BartForConditionalGeneration, LlamaForCausalLM

from generation.comparison import changed, check_same, common_tokens, their_tokens
from trivium.errors import UserError
from trivium.generation import beam_search
from trivium.generation.beam import BeamSearch
from trivium.generation.generate import generate, stream
from trivium.generation.reading import Reading
from trivium.generation.settings import GenerationSettings
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.tokenizer.bpe import Tokenizer

BEAMS = GenerationSettings(num_beams=4, max_new_tokens=64)
VARIANTS = {
    "plain": {},
    "2 beams, no length penalty": {"num_beams": 2, "length_penalty": 0.0},
    "7 beams, long": {"num_beams": 7, "length_penalty": 2.0},
    "short": {"length_penalty": -1.0},
    "early": {"early_stopping": True, "num_beams": 3},
    "never": {"early_stopping": "never"},
    "never, no penalty": {"early_stopping": "never", "length_penalty": 0.0},
    "rules": {
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6, "forced_bos_id": 120,
        "forced_eos_id": 1, "suppressed_ids": [130, 131], "max_new_tokens": 20,
    },
    "3-grams, early": {"no_repeat_ngram_size": 3, "early_stopping": True, "length_penalty": 2.0},
    "one token": {"max_new_tokens": 1},
}  # fmt: skip


@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_tokens_of_encoder_decoders_equal_transformers(
    kind: str, variant: dict[str, object], with_ends: bool, request: pytest.FixtureRequest,
    source_tokenizer: Tokenizer, sources: list[list[int]],
) -> None:  # fmt: skip
    theirs, ours = request.getfixturevalue(kind), request.getfixturevalue(f"our_{kind}")
    settings, few = changed(BEAMS, **variant), sources[:4]
    ends = common_tokens(ours, source_tokenizer, sources) if with_ends else [1]
    found = [g.tokens for g in generate(ours, source_tokenizer, few, settings, eos_ids=ends)]
    assert found == their_tokens(theirs, few, settings, ends)


@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_tokens_of_decoders_equal_transformers(
    variant: dict[str, object], with_ends: bool, model: Decoder, twin: LlamaForCausalLM, tokenizer: Tokenizer,
    prompts: list[list[int]],
) -> None:  # fmt: skip
    """Prompts one by one there, as padding would count as text in its n-grams and penalties."""
    settings = changed(BEAMS, **{k: v for k, v in variant.items() if not k.startswith("forced")})
    few = [prompts[0][:9], prompts[1], prompts[2]]
    free = generate(model, tokenizer, few, changed(settings, num_beams=1, ignore_eos=True))
    ends = sorted({token for g in free for token in g.tokens})[::6] if with_ends else [0]
    found = [g.tokens for g in generate(model, tokenizer, few, settings, eos_ids=ends)]
    for prompt, tokens in zip(few, found, strict=True):
        theirs = twin.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, eos_token_id=ends,
            pad_token_id=0, **their_names(settings),
        )[0, len(prompt) :].tolist()  # fmt: skip
        end = next((place for place, token in enumerate(theirs) if token in ends), len(theirs) - 1)
        assert tokens == theirs[: end + 1]


def their_names(settings: GenerationSettings) -> dict[str, object]:
    """The settings of a search in the words of `transformers`."""
    names = ("max_new_tokens", "num_beams", "length_penalty", "early_stopping", "repetition_penalty")
    found = {name: getattr(settings, name) for name in (*names, "no_repeat_ngram_size")}
    return {
        **found,
        "min_new_tokens": settings.min_new_tokens or None,
        "bad_words_ids": [[token] for token in settings.suppressed_ids] or None,
    }


def check_batches_change_nothing(model: EncoderDecoder, tokenizer: Tokenizer, sources: list[list[int]]) -> None:
    """Texts end at many different lengths, and leave the batch with all of their beams."""
    settings = changed(BEAMS, max_new_tokens=30)
    ends = common_tokens(model, tokenizer, sources)
    alone = [generate(model, tokenizer, [source], settings, eos_ids=ends)[0] for source in sources]
    together = generate(model, tokenizer, sources, settings, eos_ids=ends)
    check_same(together, alone)
    check_same(generate(model, tokenizer, sources, changed(settings, rows_per_batch=12), eos_ids=ends), alone)
    assert len({len(g.tokens) for g in together}) > 2


@pytest.mark.parametrize("kind", ["our_t5", "our_bart"])
def test_batches_change_nothing(
    kind: str, request: pytest.FixtureRequest, source_tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    check_batches_change_nothing(request.getfixturevalue(kind).double(), source_tokenizer, sources[:12])


@pytest.mark.parametrize("broken", ["cache", "memory"])
def test_the_check_sees_rows_that_do_not_move(
    broken: str, our_bart: EncoderDecoder, source_tokenizer: Tokenizer, sources: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Broken controls: beams that change places, or texts that leave, without their keys and values."""
    reorder = Reading.reorder

    def lazy(batch: Reading, index: list[int], *, same_sources: bool = False) -> None:
        first = torch.arange(len(index)) % batch.cache.batch
        cache, memory = batch.cache.reorder(first), None if batch.memory is None else batch.memory.reorder(first)
        reorder(batch, index, same_sources=same_sources)
        if broken == "cache":
            batch.cache = cache
        else:
            batch.memory = memory

    monkeypatch.setattr(Reading, "reorder", lazy)
    with pytest.raises(AssertionError):
        check_batches_change_nothing(our_bart.double(), source_tokenizer, sources[:12])


def test_the_check_against_transformers_sees_a_wrong_penalty(
    our_bart: EncoderDecoder, bart: BartForConditionalGeneration, source_tokenizer: Tokenizer,
    sources: list[list[int]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Broken control: texts compared by their log-probability, whatever their length."""
    settings, ends = changed(BEAMS, length_penalty=2.0), common_tokens(our_bart, source_tokenizer, sources)
    monkeypatch.setattr(beam_search, "BeamSearch", lambda *a, **k: BeamSearch(*a, **{**k, "length_penalty": 0.0}))
    found = [g.tokens for g in generate(our_bart, source_tokenizer, sources[:8], settings, eos_ids=ends)]
    assert found != their_tokens(bart, sources[:8], settings, ends)


def test_logprobs_are_the_models_own(
    our_bart: EncoderDecoder, source_tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    """Each beam takes its past log-probabilities with it when it changes places; filters do not touch them."""
    for g, source in zip(generate(our_bart, source_tokenizer, sources[:6], BEAMS), sources, strict=False):
        with torch.no_grad():
            logits = our_bart(torch.tensor([source]), torch.tensor([[1, *g.tokens[:-1]]]))[0]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(g.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(g.logprobs), expected, rtol=1e-3, atol=1e-3)


def test_ends_and_streams(our_bart: EncoderDecoder, source_tokenizer: Tokenizer, sources: list[list[int]]) -> None:
    """A stop string ends a beam where it is complete; the text comes in one go, as what `generate` returns."""
    settings = changed(BEAMS, max_new_tokens=20, ignore_eos=True)
    free = generate(our_bart, source_tokenizer, sources[:6], settings)
    assert all(g.finish_reason == "length" and len(g.tokens) == 20 for g in free)
    for source, one in zip(sources, free, strict=False):
        stop = one.text[3:5]
        (cut,) = generate(our_bart, source_tokenizer, [source], changed(settings, stop=[stop]))
        assert stop not in cut.text
        assert cut.finish_reason == ("stop" if stop in source_tokenizer.decode(cut.tokens) else "length")
        assert "".join(stream(our_bart, source_tokenizer, source, settings)) == one.text
    ended = generate(our_bart, source_tokenizer, sources[:6], changed(BEAMS, ignore_eos=False), eos_ids=range(100, 400))
    for g in ended:
        assert g.finish_reason == "stop" and g.tokens[-1] >= 100 and max(g.tokens[:-1], default=0) < 100


def test_refusals(our_bart: EncoderDecoder, source_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="set temperature=0, or num_beams=1"):
        changed(BEAMS, temperature=0.5)
    everything = changed(BEAMS, suppressed_ids=range(400))
    with pytest.raises(UserError, match="every token of the vocabulary is forbidden"):
        generate(our_bart, source_tokenizer, [[5]], everything)
    with torch.no_grad():
        our_bart.embedding.weight[7] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate(our_bart, source_tokenizer, [[5]], BEAMS)
