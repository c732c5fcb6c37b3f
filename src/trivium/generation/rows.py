"""Texts in the making: what is asked for each, what it holds so far, and when it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trivium.errors import UserError
from trivium.generation.filters import Pipe, build_pipe
from trivium.generation.prompts import encode_prompt, encode_source, refuse_too_long, refuse_unknown_ids
from trivium.generation.sampling import sequence_seed
from trivium.generation.settings import GenerationSettings
from trivium.generation.stopping import FinishReason, StopMatcher
from trivium.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.tokenizer.bpe import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Generation:
    """One prompt's continuation, or one source's target."""

    text: str
    """The new text, without the stop string that ended it and without special tokens, but with the sentinels
    (`<extra_id_0>`, ...) of an encoder-decoder, which say what fills which gap."""
    tokens: list[int]
    """All new ids, also those of the end-of-text token or stop string that ended the text."""
    logprobs: list[float]
    """For each of `tokens`, its log-probability (nats) under the model itself: before temperature and filters."""
    finish_reason: FinishReason
    """"stop": end-of-text token or stop string; "length": `max_new_tokens` or the end of the model's context."""
    prompt_tokens: int
    """How many ids the prompt or source has, special tokens included."""
    tokens_per_second: float
    """New tokens of this text per second, reading the prompt included."""


@dataclass(frozen=True)
class Rules:
    """What holds for every row of a call."""

    settings: GenerationSettings
    pipe: Pipe
    ends: frozenset[int]
    """The ids that end a text."""
    vocab_size: int
    """How many ids can be chosen: those the tokenizer knows."""


@dataclass
class Row:
    """One sequence in the making."""

    index: int
    """Whose prompt it continues."""
    prompt: list[int]
    """What the model reads first: a decoder's prompt, an encoder-decoder's source."""
    before: list[int]
    """What stands before the new tokens, for the filters: the prompt, or what every target begins with."""
    seed: int
    limit: int
    """Most new tokens."""
    decoder: StreamDecoder
    hidden: frozenset[int]
    """The ids that are no part of the text."""
    matcher: StopMatcher
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: UserError | None = None
    """Why it cannot go on, if it cannot."""
    seconds: float = 0.0
    seen_V: Tensor | None = None
    """(V,) bool: the tokens it holds, where a filter needs them (`choosing.py` fills it in)."""

    def push(self, token: int, logprob: float, ends: frozenset[int], *, is_last: bool = False) -> str:
        """Add one token; returns the text that is certain now. Sets `finish_reason` when it was the last.

        `is_last` says that it is the last one whatever it is.
        """
        self.tokens.append(token)
        self.logprobs.append(logprob)
        ended = token in ends
        piece = "" if ended or token in self.hidden else self.matcher.push(self.decoder.push(token))
        if ended or is_last or len(self.tokens) >= self.limit:  # nothing needs to be held back any more
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


def build_rows(
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    seeds: Sequence[int] | None,
) -> list[Row]:
    """The prompts as checked, unstarted rows: what is wrong with any is said before anything is computed."""
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    rows = []
    hidden = frozenset(tokenizer.special_tokens.values())
    if config.kind == "encoder-decoder":
        hidden -= frozenset(tokenizer.sentinel_ids)
    for index, prompt in enumerate(prompts):
        if config.kind == "encoder-decoder":
            ids = encode_source(tokenizer, prompt)
            before, room = [config.decoder_start_id], _target_room(config, ids, index, settings)
        else:
            ids = before = encode_prompt(tokenizer, prompt, settings)
            room = _room(config, ids, index)
        refuse_unknown_ids(ids, config.vocab_size, f"prompt {index}")
        rows.append(
            Row(
                index=index,
                prompt=ids,
                before=before,
                seed=sequence_seed(settings.seed, index) if seeds is None else seeds[index],
                limit=min(settings.max_new_tokens, room),
                decoder=tokenizer.stream(skip_special=False),
                hidden=hidden,
                matcher=StopMatcher(settings.stop),
            )
        )
    return rows


def build_rules(
    config: ModelConfig, tokenizer: Tokenizer, settings: GenerationSettings, eos_ids: Sequence[int] | None
) -> Rules:
    """The ids that end a text are end-of-text, and stop strings that are special tokens (never shown as text)."""
    ends: set[int] = set()
    if not settings.ignore_eos:
        default = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        ends.update(default if eos_ids is None else eos_ids)
    held_back = frozenset(ends)
    ends.update(tokenizer.special_tokens[stop] for stop in settings.stop if stop in tokenizer.special_tokens)
    is_seq2seq = config.kind == "encoder-decoder"
    if is_seq2seq:
        forced = [token for token in (settings.forced_bos_id, settings.forced_eos_id) if token is not None]
        refuse_unknown_ids(forced, tokenizer.vocab_size, "forced_bos_id or forced_eos_id")
    pipe = build_pipe(settings, held_back, forces=is_seq2seq)
    return Rules(settings, pipe, frozenset(ends), tokenizer.vocab_size)


def _room(config: ModelConfig, ids: Sequence[int], index: int) -> int:
    """How many tokens a decoder's context holds after the prompt; UserError when that is none."""
    room = config.max_positions - len(ids)
    if room < 1:
        raise UserError(
            f"prompt {index} has {len(ids)} tokens and the model's context holds "
            f"{config.max_positions}, which leaves no room for a new one: shorten the prompt"
        )
    return room


def _target_room(config: ModelConfig, ids: Sequence[int], index: int, settings: GenerationSettings) -> int:
    """How long the target of an encoder-decoder may get; UserError when it has no positions for the source."""
    refuse_too_long(ids, config.positions, config.max_positions, f"prompt {index}")
    # The decoder reads what the target begins with and all new tokens but the last.
    return config.max_positions if config.positions == "learned" else settings.max_new_tokens
