"""Continuous batching: texts of a decoder come, go on together and leave, step by step.

`Engine.step` admits waiting texts while slots are free, reads one token of every text that is being written, and a
bounded number of tokens of the prompts of others, so that a long prompt holds up nobody (chunked prefill; Agrawal et
al., 2023; iteration-level scheduling: Yu et al., 2022). Texts that begin alike share what is read (`prefixes.py`);
guessed tokens are checked several at a time (`lookup.py`).

One owner, no threads. What a text becomes depends on its own row alone. Invariant its test checks, in fp32: every text
has the tokens it has alone, whatever arrives when, in whatever company, cut into whatever pieces. (In 16 bits that
holds for what the kernels read, see `fast_stepper.py`; torch's own products round by the company.)

Shapes: n rows, T ids of each, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trivium.errors import UserError
from trivium.generation.choosing import choose
from trivium.generation.lookup import Lookup
from trivium.generation.prefixes import Prefixes
from trivium.generation.rows import Row, Rules
from trivium.generation.slots import Slots, Storage
from trivium.generation.stepper import PlainStepper, Stepper, grows_with_the_text
from trivium.models.decoder import Decoder

# Tokens of prompts read in one step, while others wait for their next token.
TOKENS_PER_STEP = 1024

Events = list[tuple[Row, str]]


@dataclass(eq=False)
class _Running:
    """A text that has a slot."""

    row: Row
    rules: Rules
    slot: int
    started: float
    lookup: Lookup | None
    """Guesses what comes next; None: nothing is guessed."""


class Engine:
    """A decoder and the texts it writes: those that wait, and those that run."""

    def __init__(
        self,
        model: Decoder,
        *,
        slots: int,
        capacity: int = 512,
        kept: int = 0,
        kv: Storage = "model",
        max_bytes: int | None = None,
        stepper: Stepper | None = None,
        tokens_per_step: int = TOKENS_PER_STEP,
    ) -> None:
        """At most `slots` texts run together; `kept` more slots remember the beginnings of texts that have ended.

        `capacity` positions of each have room at first; the buffers grow up to `max_bytes`. `tokens_per_step` bounds
        the tokens of prompts read in a step. The model must be in evaluation mode. UserError when `max_bytes` is too
        small for `capacity`.
        """
        self.model, self.stepper, self.most_running = model, stepper or PlainStepper(model), slots
        self.slots = Slots.for_model(model, slots + kept, capacity, kv=kv, max_bytes=max_bytes)
        self._cannot_be_cut = grows_with_the_text(model.config)
        self.prefixes = Prefixes(self.slots, shares=not self._cannot_be_cut)
        self.tokens_per_step = tokens_per_step
        self.guessed, self.accepted = 0, 0
        """How many tokens were guessed ahead, and how many of them were right."""
        self._waiting: deque[tuple[Row, Rules]] = deque()
        self._running: list[_Running] = []

    @property
    def busy(self) -> bool:
        """Whether any text waits or runs."""
        return bool(self._waiting or self._running)

    def submit(self, row: Row, rules: Rules) -> None:
        """Queue a text (`rows.build_rows`). UserError when it could outgrow the budget of bytes."""
        most = self.slots.most_positions()
        longest = len(row.prompt) + row.limit - 1  # the last token is not read
        if most is not None and longest > most:
            raise UserError(
                f"prompt {row.index} and its text may have {longest} tokens, and there is room for the keys and "
                f"values of {most}: shorten the prompt, or ask for fewer new tokens"
            )
        self._waiting.append((row, rules))

    def cancel(self, row: Row) -> None:
        """Let a text end here, whether it waits or runs; nothing is changed when it has ended already."""
        self._waiting = deque(item for item in self._waiting if item[0] is not row)
        for running in self._running:
            if running.row is row:
                self._retire(running)
                return

    def step(self) -> Events:
        """Admit, read and choose once; returns (row, new text) for each row that got tokens.

        A row that has ended says so (`finish_reason`, or `error` when it cannot go on) and has left.
        """
        self._admit()
        prompts = [running for running in self._running if self._unread(running) > 0]
        written = [running for running in self._running if self._unread(running) <= 0]
        events = self._write_on(sorted(written, key=lambda running: running.slot))
        budget = max(1, self.tokens_per_step - len(written))
        chunks: list[tuple[_Running, list[int]]] = []
        for running in prompts:
            if budget <= 0:
                break
            start = self.slots.lengths[running.slot]
            stop = len(running.row.prompt) if self._cannot_be_cut else start + budget
            chunks.append((running, running.row.prompt[start:stop]))
            budget -= len(chunks[-1][1])
        for group in _of_like_length(chunks):
            events += self._read_prompts(group)
        return events

    def _unread(self, running: _Running) -> int:
        """How much of the prompt is still to be read."""
        return len(running.row.prompt) - self.slots.lengths[running.slot]

    def _admit(self) -> None:
        """Give slots to those who wait, in order; who could go on from what another is reading waits for it."""
        postponed: deque[tuple[Row, Rules]] = deque()
        while self._waiting and len(self._running) + len(postponed) < self.most_running:
            row, rules = self._waiting.popleft()
            if self.prefixes.about_to_be_read(row.prompt):
                postponed.append((row, rules))
                continue
            slot = self.prefixes.claim(row.prompt)
            guesses = rules.settings.speculate > 0 and not self._cannot_be_cut
            lookup = Lookup(row.prompt) if guesses else None
            self._running.append(_Running(row, rules, slot, time.perf_counter(), lookup))
        self._waiting = postponed + self._waiting

    def _read_prompts(self, chunks: Sequence[tuple[_Running, list[int]]]) -> Events:
        """Read on in prompts; those read to their end get their first token."""
        which = [running.slot for running, _ in chunks]
        logits_nV = self.stepper.read(self.slots, which, [ids for _, ids in chunks])
        ready = [place for place, (running, _) in enumerate(chunks) if self._unread(running) == 0]
        if not ready:
            return []
        if len(ready) < len(chunks):
            logits_nV = logits_nV[ready]
        return self._chosen([chunks[place][0] for place in ready], logits_nV)

    def _write_on(self, some: list[_Running]) -> Events:
        """Read the newest token of each text, and what is guessed to follow it, and choose what does."""
        if not some:
            return []
        guesses = [self._guess(running) for running in some]
        ids = [[running.row.tokens[-1], *guess] for running, guess in zip(some, guesses, strict=True)]
        which = [running.slot for running in some]
        if not any(guesses):
            return self._chosen(some, self.stepper.read(self.slots, which, ids))
        logits_nTV = self.stepper.read(self.slots, which, ids, every=True)
        for running, guess in zip(some, guesses, strict=True):  # held: what is certain; more as guesses prove right
            self.slots.truncate(running.slot, self.slots.lengths[running.slot] - len(guess))
        events: Events = []
        going_on = list(range(len(some)))
        for step in range(logits_nTV.shape[1]):
            logits_nV = logits_nTV[:, step] if len(going_on) == len(some) else logits_nTV[going_on, step]
            events += self._chosen([some[place] for place in going_on], logits_nV)
            going_on = [place for place in going_on if self._was_right(some[place], guesses[place][step : step + 1])]
            if not going_on:
                break
        return _one_for_each_row(events)

    def _guess(self, running: _Running) -> list[int]:
        """What may follow the newest token, as far as the text's limit goes."""
        if running.lookup is None:
            return []
        row = running.row
        count = min(running.rules.settings.speculate, row.limit - len(row.tokens) - 1)
        guess = running.lookup.guess(count)
        self.guessed += len(guess)
        return guess

    def _was_right(self, running: _Running, guess: list[int]) -> bool:
        """Whether the token just chosen is the one that was guessed, and the text goes on: it is read already."""
        row = running.row
        if row.finish_reason is not None or row.error is not None or row.tokens[-1:] != guess:
            return False
        self.accepted += 1
        self.slots.advance(running.slot, 1)
        return True

    def _chosen(self, some: Sequence[_Running], logits_nV: Tensor) -> Events:
        """Choose and add the next token of each; those that end leave."""
        events: Events = []
        groups: dict[int, list[int]] = {}
        for place, running in enumerate(some):
            groups.setdefault(id(running.rules), []).append(place)
        for places in groups.values():
            scores = logits_nV if len(groups) == 1 else logits_nV[places]
            events += self._chosen_by_rules([some[place] for place in places], scores)
        return events

    def _chosen_by_rules(self, some: Sequence[_Running], logits_nV: Tensor) -> Events:
        rules = some[0].rules
        try:
            chosen = choose(logits_nV, [running.row for running in some], rules)
        except UserError as error:
            if len(some) == 1:
                some[0].row.error = error
                self._retire(some[0])
                return [(some[0].row, "")]
            alone = [self._chosen_by_rules([running], logits_nV[i : i + 1]) for i, running in enumerate(some)]
            return [event for events in alone for event in events]
        events = []
        for running, (token, logprob) in zip(some, chosen, strict=True):
            row = running.row
            events.append((row, row.push(token, logprob, rules.ends)))
            row.seconds = time.perf_counter() - running.started
            if running.lookup is not None:
                running.lookup.extend([token])
            if row.finish_reason is not None:
                self._retire(running)
        return events

    def _retire(self, running: _Running) -> None:
        self._running.remove(running)
        if running.row.error is None:
            self.prefixes.release(running.slot, [*running.row.prompt, *running.row.tokens])
        else:
            self.prefixes.forget(running.slot)


def _one_for_each_row(events: Events) -> Events:
    """The texts of each row joined."""
    pieces: dict[int, tuple[Row, list[str]]] = {}
    for row, piece in events:
        pieces.setdefault(id(row), (row, []))[1].append(piece)
    return [(row, "".join(parts)) for row, parts in pieces.values()]


def _of_like_length(chunks: Sequence[tuple[_Running, list[int]]]) -> list[list[tuple[_Running, list[int]]]]:
    """Groups to be read together, in each of which less than half is padding."""
    groups: list[list[tuple[_Running, list[int]]]] = []
    for chunk in sorted(chunks, key=lambda chunk: -len(chunk[1])):
        if groups and 2 * len(chunk[1]) >= len(groups[-1][0][1]):
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return [sorted(group, key=lambda chunk: chunk[0].slot) for group in groups]
