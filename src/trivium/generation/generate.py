"""Prompts to continuations: batched, cached, streamed.

Prompts of unequal length are padded on the left; padding is a segment of its own, so that attention does not reach
it, and positions count from the first real token. A sequence that has ended leaves the batch, and its rows of the KV
cache with it. Each step computes logits for the newest position only.

Invariants its tests check: the tokens are those of `transformers` for equal weights; cached equals recomputed; a
prompt continues alone as it does in any batch, greedily or (by its own seed) sampled; streamed pieces join to the
whole text.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.filters import Pipe, build_pipe
from trivium.generation.mode import evaluating
from trivium.generation.prompts import encode_prompt, refuse_unknown_ids
from trivium.generation.sampling import draw, sequence_seed, uniform
from trivium.generation.settings import GenerationSettings
from trivium.generation.stopping import FinishReason, StopMatcher
from trivium.models.cache import Cache
from trivium.models.decoder import Decoder
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import StreamDecoder, Tokenizer

# New positions the KV cache has room for at first; it grows when a text turns out longer.
CACHE_STEP = 512


@dataclass(frozen=True)
class Generation:
    """One prompt's continuation."""

    text: str
    """The new text, without special tokens and without the stop string that ended it."""
    tokens: list[int]
    """All new ids, also those of the end-of-text token or stop string that ended the text."""
    logprobs: list[float]
    """For each of `tokens`, its log-probability (nats) under the model itself: before temperature and filters."""
    finish_reason: FinishReason
    """"stop": end-of-text token or stop string; "length": `max_new_tokens` or the end of the model's context."""
    prompt_tokens: int
    """How many ids the prompt has, a beginning-of-text token included."""
    tokens_per_second: float
    """New tokens of this text per second, reading the prompt included."""


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings | None = None,
    *,
    stream: Callable[[int, str], None] | None = None,
    seeds: Sequence[int] | None = None,
    eos_ids: Sequence[int] | None = None,
    progress: Progress = SILENT,
) -> list[Generation]:
    """Continue each prompt (text, or ids); results are in the order of `prompts`.

    `stream(i, piece)` is called with new text of prompt i as it becomes certain. `seeds` replaces the seeds of the
    prompts, which are otherwise `sequence_seed(settings.seed, i)`. `eos_ids` replaces the ids that end a text, by
    default the tokenizer's end-of-text token. Raises UserError when a prompt leaves no room in the model's context or
    holds an id the model does not know, and when the model's scores are not numbers.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts is a sequence of prompts: for a single one, give [prompt]")
    settings = settings or GenerationSettings()
    rows = _rows(model, tokenizer, prompts, settings, seeds)
    rules = _rules(tokenizer, settings, eos_ids)
    # Prompts of like length share a batch, so that little is padded; results do not depend on it.
    order = sorted(rows, key=lambda row: len(row.prompt))
    progress.start("generate", total=len(rows), unit="texts")
    for start in range(0, len(order), settings.rows_per_batch):
        some = order[start : start + settings.rows_per_batch]
        for row, piece in _continue(model, some, rules):
            if stream is not None and piece:
                stream(row.index, piece)
            if row.finish_reason is not None:
                progress.advance()
    progress.finish()
    return [row.generation() for row in rows]


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings | None = None,
    *,
    eos_ids: Sequence[int] | None = None,
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece; joined, it is the text `generate` returns for `[prompt]`.

    The model is in evaluation mode until the iterator ends or is closed. Errors as in `generate`, before the first
    piece.
    """
    settings = settings or GenerationSettings()
    rows = _rows(model, tokenizer, [prompt], settings, None)
    rules = _rules(tokenizer, settings, eos_ids)
    return (piece for _, piece in _continue(model, rows, rules) if piece)


@dataclass(frozen=True)
class _Rules:
    """What holds for every row of a call."""

    settings: GenerationSettings
    pipe: Pipe
    ends: frozenset[int]
    vocab_size: int


@dataclass
class _Row:
    """One sequence in the making."""

    index: int
    prompt: list[int]
    seed: int
    limit: int
    decoder: StreamDecoder
    matcher: StopMatcher
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seconds: float = 0.0

    def push(self, token: int, logprob: float, ends: frozenset[int]) -> str:
        """Add one token; returns the text that is certain now. Sets `finish_reason` when it was the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        ended = token in ends
        piece = "" if ended else self.matcher.push(self.decoder.push(token))
        if ended or len(self.tokens) >= self.limit:  # the last token: nothing needs to be held back any more
            piece += self.matcher.push(self.decoder.finish()) + self.matcher.finish()
            self.finish_reason = "stop" if ended else "length"
        if self.matcher.stopped:
            self.finish_reason = "stop"
        self.pieces.append(piece)
        return piece

    def generation(self) -> Generation:
        """The finished result."""
        assert self.finish_reason is not None
        return Generation(
            text="".join(self.pieces),
            tokens=self.tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt),
            tokens_per_second=len(self.tokens) / max(self.seconds, 1e-9),
        )


def _rows(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    seeds: Sequence[int] | None,
) -> list[_Row]:
    """The prompts as checked, unstarted rows: what is wrong with any is said before anything is computed."""
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    rows = []
    for index, prompt in enumerate(prompts):
        ids = encode_prompt(tokenizer, prompt, settings)
        room = model.config.max_positions - len(ids)
        if room < 1:
            raise UserError(
                f"prompt {index} has {len(ids)} tokens and the model's context holds "
                f"{model.config.max_positions}, which leaves no room for a new one: shorten the prompt"
            )
        refuse_unknown_ids(ids, model.config.vocab_size, f"prompt {index}")
        rows.append(
            _Row(
                index=index,
                prompt=ids,
                seed=sequence_seed(settings.seed, index) if seeds is None else seeds[index],
                limit=min(settings.max_new_tokens, room),
                decoder=tokenizer.stream(skip_special=True),
                matcher=StopMatcher(settings.stop),
            )
        )
    return rows


def _rules(tokenizer: Tokenizer, settings: GenerationSettings, eos_ids: Sequence[int] | None) -> _Rules:
    """The ids that end a text are end-of-text, and stop strings that are special tokens (never shown as text)."""
    ends: set[int] = set()
    if not settings.ignore_eos:
        default = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        ends.update(default if eos_ids is None else eos_ids)
    ends.update(tokenizer.special_tokens[stop] for stop in settings.stop if stop in tokenizer.special_tokens)
    return _Rules(settings, build_pipe(settings), frozenset(ends), tokenizer.vocab_size)


def _continue(model: Decoder, rows: list[_Row], rules: _Rules) -> Iterator[tuple[_Row, str]]:
    """Continue `rows` together until all have finished; yields (row, new text) after each row's every token."""
    started = time.perf_counter()
    with evaluating(model):
        batch = _Batch(model, rows, rules)
        while batch.rows:
            tokens, logprobs = batch.choose()
            for row, token, logprob in zip(batch.rows, tokens, logprobs, strict=True):
                piece = row.push(token, logprob, rules.ends)
                row.seconds = time.perf_counter() - started
                yield row, piece
            batch.advance(tokens)


class _Batch:
    """The rows still running, their KV cache, and the logits of their next token."""

    @torch.inference_mode()
    def __init__(self, model: Decoder, rows: list[_Row], rules: _Rules) -> None:
        """Read the prompts."""
        self.model, self.rows, self.rules = model, rows, rules
        weight = model.embedding.weight
        self.device = weight.device
        ids_BT, segments_BT = _left_padded([row.prompt for row in rows], self.device)
        self.lengths_B = torch.tensor([len(row.prompt) for row in rows], device=self.device)
        capacity = ids_BT.shape[1] + min(max(row.limit for row in rows), CACHE_STEP)
        cache = Cache.empty(model.config, len(rows), capacity, self.device, weight.dtype)
        self.seen_BV = None if rules.settings.repetition_penalty == 1.0 else self._seen()
        self._read(ids_BT, segments_BT, None, cache)

    @torch.inference_mode()
    def choose(self) -> tuple[list[int], list[float]]:
        """The next token of each row, and its log-probability under the unfiltered model."""
        scores_BV = self.logits_BV.float()
        logprobs_BV = scores_BV.log_softmax(-1)
        if logprobs_BV[:, 0].isnan().any():  # one NaN or +inf makes its whole row NaN
            raise UserError(
                "the model's scores are not finite, so no token can be chosen: its weights are damaged, or "
                f"overflow in {self.logits_BV.dtype} (load it in fp32 or bf16)"
            )
        # An embedding table may be longer than the vocabulary, to suit the hardware: its tail is never chosen.
        known = slice(self.rules.vocab_size)
        seen_BV = None if self.seen_BV is None else self.seen_BV[:, known]
        filtered_BV = self.rules.pipe(scores_BV[:, known], seen_BV)
        if self.rules.settings.greedy:
            tokens_B = filtered_BV.argmax(-1)
        else:
            tokens_B = draw(filtered_BV, [uniform(row.seed, len(row.tokens)) for row in self.rows])
        return tokens_B.tolist(), logprobs_BV.gather(1, tokens_B[:, None])[:, 0].tolist()

    @torch.inference_mode()
    def advance(self, tokens: list[int]) -> None:
        """Read the tokens just chosen; rows that have finished leave the batch."""
        running = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        cache = self.cache
        if len(running) < len(self.rows):
            self.rows = [self.rows[i] for i in running]
            if not running:
                return
            index = torch.tensor(running, device=self.device)
            cache, self.lengths_B = cache.reorder(index), self.lengths_B[index]
            self.seen_BV = None if self.seen_BV is None else self.seen_BV[index]
        ids_B1 = torch.tensor([[tokens[i]] for i in running], device=self.device)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, ids_B1, True)
        self._read(ids_B1, None, self.lengths_B[:, None], cache)
        self.lengths_B = self.lengths_B + 1

    def _read(self, ids_BT: Tensor, segments_BT: Tensor | None, positions_BT: Tensor | None, cache: Cache) -> None:
        """Extend the cache by `ids_BT`, and keep the logits of what follows the last of them."""
        hidden_BTD, extended = self.model.hidden(ids_BT, positions=positions_BT, segments=segments_BT, cache=cache)
        assert extended is not None
        self.cache: Cache = extended
        self.logits_BV: Tensor = self.model.logits(hidden_BTD[:, -1])

    def _seen(self) -> Tensor:
        """(B, V) bool: the tokens each prompt holds."""
        shape = (len(self.rows), self.model.config.vocab_size)
        seen_BV = torch.zeros(shape, dtype=torch.bool, device=self.device)
        for row, seen_V in zip(self.rows, seen_BV, strict=True):
            seen_V[torch.tensor(row.prompt, device=self.device)] = True
        return seen_BV


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T), padded on the left with id 0, and segments (B, T): 0 padding, 1 prompt (None: no padding)."""
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids_BT, None
    padding_B1 = torch.tensor([[longest - len(prompt)] for prompt in prompts], device=device)
    return ids_BT, (torch.arange(longest, device=device) >= padding_B1).int()
