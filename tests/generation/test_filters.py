"""Each filter, and the whole pipe, against the logits processors of `transformers`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trivium.errors import UserError
from trivium.generation import filters
from trivium.generation.filters import Past
from trivium.generation.settings import GenerationSettings

Theirs = Callable[[Tensor, Tensor], Tensor]
IDS = torch.zeros((1, 1), dtype=torch.long)  # what the processors that ignore the ids are given


def random_scores(rows: int = 64, vocabulary: int = 211, seed: int = 0) -> Tensor:
    """Scores of all spreads: nearly flat in the first rows, one token dominant in the last."""
    spread = torch.linspace(0.1, 20, rows)[:, None]
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def check_equal_distributions(ours: Tensor, theirs: Tensor) -> None:
    """The same tokens are kept, with the same log-probabilities."""
    torch.testing.assert_close(ours.isneginf(), theirs.isneginf(), rtol=0, atol=0)
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
def test_temperature(temperature: float) -> None:
    scores = random_scores()
    check_equal_distributions(
        filters.apply_temperature(scores, temperature), TemperatureLogitsWarper(temperature)(IDS, scores)
    )


@pytest.mark.parametrize("k", [1, 2, 10, 210, 211, 5000])
def test_top_k(k: int) -> None:
    scores = random_scores().round(decimals=1)  # with ties
    assert torch.equal(filters.keep_top_k(scores, k), TopKLogitsWarper(k)(IDS, scores))


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.9, 0.99])
def test_top_p(p: float) -> None:
    scores = random_scores()
    assert torch.equal(filters.keep_top_p(scores, p), TopPLogitsWarper(p)(IDS, scores))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 1.0])
def test_min_p(p: float) -> None:
    scores = random_scores()
    assert torch.equal(filters.keep_min_p(scores, p), MinPLogitsWarper(p)(IDS, scores))


def seen(ids: Tensor, vocabulary: int) -> Tensor:
    """(B, V): which tokens each row of `ids` holds."""
    return torch.zeros(len(ids), vocabulary, dtype=torch.bool).scatter(1, ids, True)


@pytest.mark.parametrize("penalty", [0.8, 1.3, 2.0])
def test_repetition_penalty(penalty: float) -> None:
    scores, ids = random_scores(), torch.randint(211, (64, 30), generator=torch.Generator().manual_seed(1))
    ours = filters.penalise_repetition(scores, seen(ids, 211), penalty)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, scores))


def past_of(ids: Tensor, num_new: int = 3, limit: int = 9) -> Past:
    """What the filters are told of rows that hold `ids`."""
    return Past(ids.tolist(), [num_new] * len(ids), [limit] * len(ids), seen(ids, 211))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_ngram_twice(n: int) -> None:
    """Rows that are shorter than n, and long ones of few different tokens, whose n-grams come again."""
    for length in (1, 2, 4, 50):
        ids = torch.randint(4, (64, length), generator=torch.Generator().manual_seed(length))
        ours = filters.forbid_repeated_ngrams(random_scores(), ids.tolist(), n)
        assert torch.equal(ours, NoRepeatNGramLogitsProcessor(n)(ids, random_scores()))


def test_the_check_sees_a_tail_that_is_its_own_repetition() -> None:
    """Broken control: n-grams of one more token than asked for."""
    ids = torch.randint(4, (64, 50), generator=torch.Generator().manual_seed(1))
    ours = filters.forbid_repeated_ngrams(random_scores(), ids.tolist(), 4)
    assert not torch.equal(ours, NoRepeatNGramLogitsProcessor(3)(ids, random_scores()))


def test_suppressed_tokens() -> None:
    """Ids beyond the vocabulary are none."""
    ours = filters.suppress(random_scores(), range(64), (3, 5, 1000))
    assert torch.equal(ours, NoBadWordsLogitsProcessor([[3], [5]])(IDS.expand(64, 1), random_scores()))
    some = filters.suppress(random_scores(), [2], (3,))
    assert int(some.isneginf().sum()) == 1 and some[2, 3].isneginf()
    with pytest.raises(UserError, match="every token of the vocabulary is forbidden"):
        filters.suppress(random_scores(), [1], range(211))


def test_when_tokens_are_held_back_and_forced() -> None:
    """Row 0 is at its first token, row 1 in the middle, row 2 at its last."""
    settings = GenerationSettings(min_new_tokens=1, forced_bos_id=7, forced_eos_id=8)
    past = Past([], [0, 3, 9], [10, 10, 10])
    scores = random_scores(3)
    forced = filters.build_pipe(settings, {5}, forces=True)(scores, past)
    assert forced[0].isfinite().nonzero().tolist() == [[7]] and forced[2].isfinite().nonzero().tolist() == [[8]]
    assert torch.equal(forced[1], scores[1])
    free = filters.build_pipe(settings, {5})(scores, past)
    assert free.isneginf().nonzero().tolist() == [[0, 5]]


PIPES = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 0.3, "top_k": 7, "top_p": 0.95, "min_p": 0.2, "repetition_penalty": 0.9},
]


def transformers_pipe(values: dict[str, float]) -> Theirs:
    """The processors in the order in which `transformers` itself would apply them."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **values})
    processors: Theirs = model._get_logits_processor(config, input_ids_seq_length=4)
    return processors


@pytest.mark.parametrize("values", PIPES, ids=str)
def test_the_pipe_equals_that_of_transformers(values: dict[str, float]) -> None:
    ids = torch.randint(211, (64, 30), generator=torch.Generator().manual_seed(2))
    theirs = transformers_pipe(values)(ids, random_scores())
    pipe = filters.build_pipe(GenerationSettings(**values))  # type: ignore[arg-type]
    check_equal_distributions(pipe(random_scores(), past_of(ids)), theirs)


def test_the_check_sees_a_wrong_order() -> None:
    """Broken control: top-p before temperature keeps other tokens."""
    scores, values = random_scores(), {"temperature": 0.5, "top_p": 0.8}
    theirs = transformers_pipe(values)(IDS.expand(64, 1), scores)
    with pytest.raises(AssertionError):
        check_equal_distributions(filters.apply_temperature(filters.keep_top_p(scores, 0.8), 0.5), theirs)


def test_greedy_leaves_after_the_penalty() -> None:
    """With temperature 0 no other filter runs, and what is asked of them does not matter."""
    scores = random_scores()
    pipe = filters.build_pipe(GenerationSettings(temperature=0, top_k=3, top_p=0.1, min_p=0.9))
    assert pipe(scores, past_of(IDS)) is scores


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    "values",
    [{"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 2e-5, "top_p": 0.5, "min_p": 0.5}],
    ids=str,
)
def test_the_likeliest_token_always_stays(scale: float, values: dict[str, float]) -> None:
    scores = random_scores() * scale
    pipe = filters.build_pipe(GenerationSettings(**{"temperature": 1.0, **values}))  # type: ignore[arg-type]
    kept = pipe(scores, past_of(IDS.expand(64, 1)))
    assert not kept.isnan().any()
    assert not kept.gather(1, scores.argmax(-1, keepdim=True)).isneginf().any()
