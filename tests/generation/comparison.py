"""What the tests of encoder-decoders ask: the same as `transformers`, the same as another way of computing it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trivium.generation.generate import Generation, generate
from trivium.generation.settings import GenerationSettings
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.tokenizer.bpe import Tokenizer

Sources = list[list[int]]
GREEDY = GenerationSettings(max_new_tokens=24, ignore_eos=True)
SAMPLED = GenerationSettings(temperature=1.3, top_k=100, top_p=0.95, seed=11, max_new_tokens=24, ignore_eos=True)


def changed(settings: GenerationSettings, **changes: object) -> GenerationSettings:
    """Settings with some fields replaced, checked anew."""
    return GenerationSettings(**{**settings.model_dump(), **changes})  # type: ignore[arg-type]


def check_same(ours: list[Generation], others: list[Generation]) -> None:
    """The same tokens, and their log-probabilities to 1e-4 (the scores are large)."""
    assert [one.tokens for one in ours] == [other.tokens for other in others]
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=1e-5, atol=1e-4)


def padded_for_transformers(sources: Sources) -> dict[str, Tensor]:
    """Sources padded on the right, with their mask."""
    longest = max(map(len, sources))
    return {
        "input_ids": torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources]),
        "attention_mask": torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sources]),
    }


def their_tokens(theirs: PreTrainedModel, sources: Sources, settings: GenerationSettings, ends: list[int]) -> Sources:
    """What `transformers` writes, up to and with the token that ended it."""
    written = theirs.generate(
        **padded_for_transformers(sources),
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=0,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens or None,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        forced_bos_token_id=settings.forced_bos_id,
        forced_eos_token_id=settings.forced_eos_id,
        bad_words_ids=[[token] for token in settings.suppressed_ids] or None,
    )
    texts = []
    for row in written[:, 1:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        texts.append(row[: end + 1])
    return texts


def common_tokens(model: EncoderDecoder, tokenizer: Tokenizer, sources: Sources) -> list[int]:
    """Tokens that the model often writes: as ends, they end texts at many different lengths."""
    written = [token for g in generate(model, tokenizer, sources[:4], SAMPLED) for token in g.tokens[3:]]
    return sorted(set(written))[::5]
