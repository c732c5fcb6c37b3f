"""Rolling windows against a literal reading of the rule, and log-likelihoods against `transformers`."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer as Core
from tokenizers.models import WordLevel
from transformers import BartForConditionalGeneration, LlamaForCausalLM

from trivium.errors import UserError
from trivium.generation import scoring
from trivium.generation.scoring import (
    TextScore,
    Window,
    documents_logprobs,
    rolling_windows,
    score_documents,
    score_pairs,
    score_text,
    sum_scores,
    token_logprobs,
)
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.tokenizer.bpe import Tokenizer

PREFIX = -1


def by_the_rule(num_tokens: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """(positions read, positions scored) of each window, as EVALUATION 1.3 words it; t_i is i and the prefix
    PREFIX."""
    tokens, windows = list(range(num_tokens)), []
    if not tokens:
        return []
    k = min(max_length, num_tokens)
    windows.append(([PREFIX, *tokens[: k - 1]], tokens[:k]))
    predicted = k
    while predicted < num_tokens:
        w = min(num_tokens - predicted, max_length)
        end = predicted + w
        windows.append((tokens[end - max_length - 1 : end - 1], tokens[end - w : end]))
        predicted = end
    return windows


def check_windows(make: Callable[[int, int], list[Window]]) -> None:
    """The windows of every text up to 40 tokens and every length up to 12."""
    for max_length in range(1, 13):
        for num_tokens in range(41):
            ids = list(range(num_tokens))
            read = [(scoring._read(ids, PREFIX, w), w.num_scored) for w in make(num_tokens, max_length)]
            got = [(text[:-1], text[len(text) - count :]) for text, count in read]
            assert got == by_the_rule(num_tokens, max_length), (num_tokens, max_length)


def test_windows_follow_the_rule() -> None:
    check_windows(rolling_windows)


def test_the_published_check_vector() -> None:
    """M = 4, ten tokens: [b012 -> 0123], [3456 -> 4567], [5678 -> 89]."""
    assert rolling_windows(10, 4) == [Window(0, 4, 4), Window(4, 8, 4), Window(6, 10, 2)]
    assert by_the_rule(10, 4)[1:] == [([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9])]


def test_the_check_sees_a_last_window_without_context() -> None:
    """Broken control: the last window is cut short instead of being filled up with context."""

    def broken(num_tokens: int, max_length: int) -> list[Window]:
        return [Window(w.end - w.num_scored, w.end, w.num_scored) for w in rolling_windows(num_tokens, max_length)]

    with pytest.raises(AssertionError):
        check_windows(broken)


def reference_logprobs(twin: LlamaForCausalLM, ids: list[int], prefix: int, max_length: int) -> torch.Tensor:
    """fp64 log-probabilities from `transformers`, one plain forward pass per window."""
    stream, scores = [prefix, *ids], []
    twin = twin.double()
    for read, scored in by_the_rule(len(ids), max_length):
        inputs = torch.tensor([[stream[i + 1] for i in read]])
        with torch.no_grad():
            logprobs = twin(inputs).logits[0].log_softmax(-1)
        scores += [logprobs[len(read) - len(scored) + n, ids[i]] for n, i in enumerate(scored)]
    return torch.stack(scores)


@pytest.mark.parametrize("max_length", [1, 7, 64, 320])
def test_logprobs_equal_transformers(
    model: Decoder, twin: LlamaForCausalLM, tokenizer: Tokenizer, text: str, max_length: int
) -> None:
    ids = tokenizer.encode(text)[: 150 if max_length < 64 else 700]
    ours = token_logprobs(model, ids, prefix_id=0, max_length=max_length, tokens_per_batch=100)
    theirs = reference_logprobs(twin, ids, 0, max_length)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
    assert ours.dtype == torch.float32
    assert -float(ours.double().sum()) == pytest.approx(-float(theirs.sum()), rel=1e-6)


def test_batching_and_chunking_change_nothing(
    model: Decoder, tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of all lengths, the empty one among them, share batches and are padded; logits come in small
    chunks."""
    documents = [
        tokenizer.encode(piece) for piece in ["", "x", text[:50], text[50:3000], "", text[3000:3300], text[:2000]]
    ]
    alone = [
        torch.empty(0) if not ids else token_logprobs(model, ids, prefix_id=0, max_length=64, tokens_per_batch=1)
        for ids in documents
    ]
    sizes: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(hidden.shape[0]) or logits(hidden))
    monkeypatch.setattr(scoring, "LOGITS_PER_CHUNK", 10 * model.config.vocab_size)
    together = documents_logprobs(model, documents, prefix_id=0, max_length=64, tokens_per_batch=500)
    assert max(sizes) == 10 and sum(sizes) == sum(map(len, documents))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    """Closed form: every token costs ln V, wherever windows begin."""
    with torch.no_grad():
        model.head.output.weight.zero_()
    score = score_text(model, tokenizer, text[:5000], max_length=50)
    result = score.perplexity()
    assert result.perplexity == pytest.approx(model.config.vocab_size, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(math.log2(model.config.vocab_size) * score.num_tokens / 5000, rel=1e-6)


def test_a_corpus_is_scored_document_by_document(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    texts = [text[:300], " two words", text[300:1500], "é🙂"]
    scores = score_documents(model, tokenizer, texts)
    alone = [score_text(model, tokenizer, one) for one in texts]
    assert [s.nll_sum for s in scores] == pytest.approx([s.nll_sum for s in alone], rel=1e-5)
    assert [s.num_tokens for s in scores] == [len(ids) for ids in tokenizer.encode_batch(texts)]
    assert scores[3].num_bytes == 6 and scores[1].num_words == 3
    total = sum_scores(scores)
    assert total == TextScore(
        sum(s.nll_sum for s in scores),
        sum(s.num_tokens for s in scores),
        sum(len(one.encode()) for one in texts),
        sum(s.num_words for s in scores),
    )
    assert total.perplexity().nll == pytest.approx(total.nll_sum / total.num_tokens)


def test_the_prefix_is_the_beginning_of_text_or_else_its_end(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    assert prefix is not None
    ids = tokenizer.encode(text[:100])
    expected = token_logprobs(model, ids, prefix_id=prefix)
    assert score_text(model, tokenizer, text[:100]).nll_sum == pytest.approx(-float(expected.double().sum()))
    other = token_logprobs(model, ids, prefix_id=prefix + 1)
    assert not torch.equal(expected, other)


def test_dropout_is_off(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    config = model.config.changed(dropout=0.5)
    noisy = type(model)(config)
    noisy.load_state_dict(model.state_dict())
    noisy.train()
    assert score_text(noisy, tokenizer, text[:200]) == score_text(model, tokenizer, text[:200])
    assert noisy.training


def test_refusals(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"windows of 321 tokens: the model reads from 1 to 320"):
        score_text(model, tokenizer, "text", max_length=321)
    with pytest.raises(UserError, match="document 1 holds an id outside the model's vocabulary of 400"):
        documents_logprobs(model, [[1], [400]], prefix_id=0)
    with pytest.raises(UserError, match="at least one"):
        score_text(model, tokenizer, "").perplexity()


# --- Pairs, and models without a probability for a text
# ---------------------------------------------------------


def check_pairs(model: EncoderDecoder, tokenizer: Tokenizer, theirs: BartForConditionalGeneration, text: str) -> None:
    """Log-likelihoods of targets of all lengths, in batches of several sizes, against `transformers`' loss."""
    sources = [text[:40], "x", text[100:190], text[300:310]]
    targets = ["", text[50:90], "y é", text[310:400]]
    expected = []
    for source, target in zip(sources, targets, strict=True):
        ids, labels = ([*tokenizer.encode(one), 1] for one in (source, target))
        with torch.no_grad():
            loss = theirs(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        expected.append(float(loss) * len(labels))
    for tokens_per_batch in (1, 150, 8192):
        scores = score_pairs(model, tokenizer, sources, targets, tokens_per_batch=tokens_per_batch)
        assert [score.nll_sum for score in scores] == pytest.approx(expected, rel=1e-4)
    assert [score.num_tokens for score in scores] == [len(tokenizer.encode(target)) + 1 for target in targets]
    assert [score.num_bytes for score in scores] == [len(target.encode()) for target in targets]


def test_pairs_equal_transformers(
    our_bart: EncoderDecoder, bart: BartForConditionalGeneration, source_tokenizer: Tokenizer, text: str
) -> None:
    check_pairs(our_bart, source_tokenizer, bart, text)


def test_the_check_sees_padding_of_sources(
    our_bart: EncoderDecoder, bart: BartForConditionalGeneration, source_tokenizer: Tokenizer, text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Broken control: targets attend to the padding of their sources."""
    padded = scoring.padded
    monkeypatch.setattr(scoring, "padded", lambda *a, **k: (padded(*a, **k)[0], None))
    with pytest.raises(AssertionError):
        check_pairs(our_bart, source_tokenizer, bart, text)


def test_pairs_that_cannot_be_scored(
    our_bart: EncoderDecoder, model: Decoder, source_tokenizer: Tokenizer, tokenizer: Tokenizer
) -> None:
    assert score_pairs(our_bart, source_tokenizer, [], []) == []
    with pytest.raises(UserError, match="1 sources for 2 targets"):
        score_pairs(our_bart, source_tokenizer, ["a"], ["b", "c"])
    with pytest.raises(UserError, match=r"target 0 has 401 tokens .* learned 128"):
        score_pairs(our_bart, source_tokenizer, ["a"], ["é" * 200])
    with pytest.raises(UserError, match=r"needs an encoder-decoder .*: use generate"):
        score_pairs(model, tokenizer, ["a"], ["b"])


def test_models_without_perplexity_say_why(our_bart: EncoderDecoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no perplexity without a source to predict the text from; use seq2seq$"):
        score_text(our_bart, tokenizer, "text")
    masked = build_model(ModelConfig(kind="encoder", vocab_size=400, width=16, layers=1, heads=2))
    with pytest.raises(UserError, match=r"a masked model has no perplexity: it predicts a token from both sides"):
        score_text(masked, tokenizer, "text")
    vectors = build_model(ModelConfig(kind="encoder", head="none", vocab_size=400, width=16, layers=1, heads=2))
    nameless = Tokenizer(Core(WordLevel({"[UNK]": 0}, unk_token="[UNK]")))  # has no token to stand before a text
    with pytest.raises(UserError, match=r"perplexity needs a decoder .* an encoder with no head: use embed"):
        score_text(vectors, nameless, "text")
    judge = build_model(ModelConfig(vocab_size=400, width=16, layers=1, heads=2, head="scalar"))
    with pytest.raises(UserError, match=r"perplexity needs a decoder .* with a scalar head: use classify"):
        score_text(judge, tokenizer, "text")
