"""Texts to log-likelihoods: every token scored exactly once, in rolling windows.

A text longer than the model's context is cut as EleutherAI's lm-evaluation-harness does it (`loglikelihood_rolling`
with one context token). Before the tokens t_0 .. t_{n-1} stands a prefix token b (beginning-of-text, else
end-of-text). The first window reads b, t_0 .. and scores up to `max_length` tokens; each later one ends where the
next `max_length` tokens end (or the text does), is filled up to the left with context, and scores only what is new.

Only a decoder has a probability for a text. A masked model has none, since it predicts a token from both sides; an
encoder-decoder has one for a target, given its source (`score_pairs`).

Log-probabilities are a log-softmax in fp32 and are summed in fp64; the logits of all positions are never held at
once. Since attention is causal, rows can be padded on the right without a mask. Invariants its tests check: the
windows are those of a brute-force reading of the rule; the sum is that of one plain forward pass per window, or pair.

Shapes: B windows or pairs, T positions, S positions of a source, N scored tokens, D width, V vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.mode import evaluating
from trivium.generation.prompts import document_start, encode_source, refuse_too_long, refuse_unknown_ids
from trivium.generation.purposes import refuse_unless, refuse_unless_causal
from trivium.generation.reading import padded
from trivium.metrics.perplexity import Perplexity, count_bytes, count_words, perplexity
from trivium.models.build import Model
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

# Most logits held at once, in numbers: 64 MB in fp32.
LOGITS_PER_CHUNK = 1 << 24


@dataclass(frozen=True)
class Window:
    """One forward pass over a text with the prefix in front: b, t_0, t_1, ..."""

    start: int
    """First position read, counted with the prefix: 0 is b, 1 is t_0."""
    end: int
    """One past the last position read; the last token predicted is t_{end-1}."""
    num_scored: int
    """How many of the last predictions count; those before were scored by an earlier window."""


# A document's number, and one of its windows.
_Numbered = tuple[int, Window]


@dataclass(frozen=True)
class TextScore:
    """Sums over a text or a corpus, from which every perplexity follows."""

    nll_sum: float
    """Negative log-likelihood, nats."""
    num_tokens: int
    """Scored tokens: all but the prefix."""
    num_bytes: int
    """UTF-8 bytes of the text."""
    num_words: int
    """Words of the text, counted as by `metrics.perplexity.count_words`."""

    def __add__(self, other: TextScore) -> TextScore:
        """The two texts as one corpus."""
        return TextScore(
            self.nll_sum + other.nll_sum,
            self.num_tokens + other.num_tokens,
            self.num_bytes + other.num_bytes,
            self.num_words + other.num_words,
        )

    def perplexity(self) -> Perplexity:
        """Perplexities of the text; raises UserError when it has no tokens."""
        return perplexity(self.nll_sum, self.num_tokens, num_bytes=self.num_bytes, num_words=self.num_words)


def rolling_windows(num_tokens: int, max_length: int) -> list[Window]:
    """The windows that score each of `num_tokens` tokens once, reading at most `max_length` positions a time."""
    begins = range(0, num_tokens, max_length)
    ends = [min(begin + max_length, num_tokens) for begin in begins]
    return [Window(max(0, end - max_length), end, end - begin) for begin, end in zip(begins, ends, strict=True)]


def token_logprobs(
    model: Model,
    ids: Sequence[int],
    *,
    prefix_id: int,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
) -> Tensor:
    """Log-probability (nats) of each of `ids` given those before it: (len(ids),) fp32 on the CPU.

    `prefix_id` stands before the first one; `max_length` is the longest window (None: the model's context).
    """
    (logprobs,) = documents_logprobs(
        model, [ids], prefix_id=prefix_id, max_length=max_length, tokens_per_batch=tokens_per_batch
    )
    return logprobs


def documents_logprobs(
    model: Model,
    documents: Sequence[Sequence[int]],
    *,
    prefix_id: int,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    progress: Progress = SILENT,
    description: str = "scoring texts",
) -> list[Tensor]:
    """`token_logprobs` of each document: each is scored by itself, but their windows share batches.

    `tokens_per_batch` positions are read at a time (at least one window); `description` is what `progress` calls the
    work. Raises UserError when the model is no causal language model, `max_length` exceeds its context, or a document
    holds an id that it does not know.
    """
    refuse_unless_causal(model.config)
    assert isinstance(model, Decoder)  # by its kind
    context = model.config.max_positions
    max_length = context if max_length is None else max_length
    if not 1 <= max_length <= context:
        raise UserError(f"windows of {max_length} tokens: the model reads from 1 to {context} at a time")
    for number, ids in enumerate(documents):
        refuse_unknown_ids(ids, model.config.vocab_size, f"document {number}")
    windows = [
        (number, window) for number, ids in enumerate(documents) for window in rolling_windows(len(ids), max_length)
    ]
    windows.sort(key=lambda item: item[1].start - item[1].end)  # longest first: like lengths share a batch
    results = [torch.empty(len(ids)) for ids in documents]
    progress.start(description, total=sum(map(len, documents)), unit="tokens")
    with evaluating(model):
        for batch in _batches(windows, tokens_per_batch):
            texts = [_read(documents[number], prefix_id, window) for number, window in batch]
            scores = _score(model, texts, [window.num_scored for _, window in batch])
            for (number, window), logprobs in zip(batch, scores, strict=True):
                results[number][window.end - window.num_scored : window.end] = logprobs
                progress.advance(window.num_scored)
    progress.finish()
    return results


def score_documents(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    progress: Progress = SILENT,
    description: str = "scoring texts",
) -> list[TextScore]:
    """The sums of each text, scored by itself; added up (`sum_scores`), they are those of the corpus.

    Before each text stands the tokenizer's beginning-of-text token, else its end-of-text token, which is not scored.
    """
    refuse_unless_causal(model.config)  # before the tokenizer is asked for what such models alone need
    logprobs = documents_logprobs(
        model,
        tokenizer.encode_batch(texts),
        prefix_id=document_start(tokenizer),
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
        description=description,
    )
    return [
        TextScore(-float(scored.double().sum()), len(scored), count_bytes(text), count_words(text))
        for text, scored in zip(texts, logprobs, strict=True)
    ]


def score_text(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    progress: Progress = SILENT,
) -> TextScore:
    """`score_documents` of one text."""
    (score,) = score_documents(
        model, tokenizer, [text], max_length=max_length, tokens_per_batch=tokens_per_batch, progress=progress
    )
    return score


def score_pairs(
    model: Model,
    tokenizer: Tokenizer,
    sources: Sequence[str | Sequence[int]],
    targets: Sequence[str],
    *,
    tokens_per_batch: int = 8192,
    progress: Progress = SILENT,
    description: str = "scoring texts",
) -> list[TextScore]:
    """The sums of each target, given the source that has its place: of an encoder-decoder.

    Targets are scored with the special tokens that `Tokenizer.wrap` puts around them, so that ending in time counts.
    Raises UserError when the model is no encoder-decoder, or a text is too long for it.
    """
    refuse_unless(model.config, "scoring targets of sources", ["encoder-decoder"])
    assert isinstance(model, EncoderDecoder)  # by its kind
    if len(sources) != len(targets):
        raise UserError(f"{len(sources)} sources for {len(targets)} targets: give one of each")
    pairs = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        ids, (wanted, _) = encode_source(tokenizer, source), tokenizer.wrap(tokenizer.encode(target))
        for name, some in (("source", ids), ("target", wanted)):
            refuse_too_long(some, model.config.positions, model.config.max_positions, f"{name} {number}")
            refuse_unknown_ids(some, model.config.vocab_size, f"{name} {number}")
        pairs.append((ids, wanted))
    order = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
    nlls: dict[int, float] = {}
    progress.start(description, total=len(pairs), unit="text" if len(pairs) == 1 else "texts")
    with evaluating(model):
        while order:
            count = max(1, tokens_per_batch // max(1, sum(map(len, pairs[order[0]]))))
            some, order = order[:count], order[count:]
            scores = _score_targets(model, [pairs[n][0] for n in some], [pairs[n][1] for n in some])
            nlls.update((n, -float(scored.double().sum())) for n, scored in zip(some, scores, strict=True))
            progress.advance(len(some))
    progress.finish()
    return [
        TextScore(nlls[number], len(pairs[number][1]), count_bytes(target), count_words(target))
        for number, target in enumerate(targets)
    ]


def sum_scores(scores: Iterable[TextScore]) -> TextScore:
    """A corpus: its perplexities are ratios of these sums, not means over documents."""
    return reduce(operator.add, scores, TextScore(0.0, 0, 0, 0))


def _read(ids: Sequence[int], prefix_id: int, window: Window) -> list[int]:
    """What a window reads, and one token more: its last target."""
    before = [prefix_id] if window.start == 0 else []
    return [*before, *ids[max(0, window.start - 1) : window.end]]


def _batches(windows: Sequence[_Numbered], tokens_per_batch: int) -> Iterator[Sequence[_Numbered]]:
    """Runs of `windows` (longest first) that hold at most `tokens_per_batch` positions when padded."""
    start = 0
    while start < len(windows):
        _, longest = windows[start]
        count = max(1, tokens_per_batch // (longest.end - longest.start))
        yield windows[start : start + count]
        start += count


@torch.inference_mode()
def _score(model: Decoder, texts: list[list[int]], num_scored: list[int]) -> list[Tensor]:
    """Log-probabilities of the last `num_scored[i]` tokens of `texts[i]`, the longest text first."""
    device = model.device
    padded_BT = torch.tensor([text + [0] * (len(texts[0]) - len(text)) for text in texts], device=device)
    lengths_B1, counts_B1 = torch.tensor([list(map(len, texts)), num_scored], device=device)[:, :, None]
    target_T = torch.arange(1, padded_BT.shape[1], device=device)
    scored_BT = (target_T >= lengths_B1 - counts_B1) & (target_T < lengths_B1)
    hidden_BTD, _ = model.hidden(padded_BT[:, :-1])
    logprobs_N = _target_logprobs(model, hidden_BTD[scored_BT], padded_BT[:, 1:][scored_BT])
    return list(torch.split(logprobs_N, num_scored))


@torch.inference_mode()
def _score_targets(
    model: EncoderDecoder, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Log-probabilities of all tokens of each target."""
    device, start = model.device, model.config.decoder_start_id
    source_BS, segments_BS = padded(sources, device, on_the_left=False)
    memory = model.memory(model.encode(source_BS, segments=segments_BS), segments_BS)
    given_BT, _ = padded([[start, *target] for target in targets], device, on_the_left=False)
    lengths_B1 = torch.tensor([[len(target)] for target in targets], device=device)
    scored_BT = torch.arange(given_BT.shape[1] - 1, device=device) < lengths_B1
    hidden_BTD, _ = model.hidden(given_BT[:, :-1], memory=memory)
    logprobs_N = _target_logprobs(model, hidden_BTD[scored_BT], given_BT[:, 1:][scored_BT])
    return list(torch.split(logprobs_N, [len(target) for target in targets]))


def _target_logprobs(model: Decoder | EncoderDecoder, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """(N,) fp32 on the CPU: the log-probability of each target, logits being made a bounded number at a time."""
    rows = max(1, LOGITS_PER_CHUNK // model.config.vocab_size)
    # Made before the first chunk of logits: a small result in the place of a freed chunk would keep the next one out.
    logprobs_N1 = hidden_ND.new_empty(len(targets_N), 1, dtype=torch.float32)
    for start in range(0, len(targets_N), rows):
        chunk = slice(start, start + rows)
        scores = model.logits(hidden_ND[chunk]).float().log_softmax(-1)
        torch.gather(scores, 1, targets_N[chunk, None], out=logprobs_N1[chunk])
        del scores
    return logprobs_N1[:, 0].cpu()
