"""Guessing the next tokens of a text from the text itself, so that several can be checked in one pass.

Prompt lookup (Saxena, 2023): where the last few tokens have stood before, what followed them then may follow again.
The guess costs no model; checking it reads all guessed tokens in one pass over the weights, which on a machine bound
by memory costs little more than one token (Leviathan et al., 2023). A guessed token is kept only where it is the very
token that would have been chosen without it: the likeliest, or the one that the text's own seeded draw for that place
gives. (Departure from Leviathan et al., whose acceptance keeps the distribution, but not the sample.) So filters,
seeds and stop strings act as ever, and the text is the same.

Invariant its test checks: tokens and log-probabilities with guessing are those without.
"""

from __future__ import annotations

from collections.abc import Sequence

# How many of the last tokens must have stood before: three, or else two.
MATCHES = (3, 2)


class Lookup:
    """The runs of tokens of one growing text, and where each stood last."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """For each run that was followed by something: the place after its latest one."""
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """The text goes on with `ids`."""
        for token in ids:
            place = len(self.ids)
            for size in MATCHES:
                if place >= size:
                    self._after[tuple(self.ids[place - size :])] = place
            self.ids.append(token)

    def guess(self, count: int) -> list[int]:
        """Up to `count` tokens that may come next; none when the text gives no hint."""
        for size in MATCHES:
            after = self._after.get(tuple(self.ids[-size:]))
            if after is not None:
                # What followed may run into the end of the text: the repetition then goes on.
                period = len(self.ids) - after
                return [self.ids[after + step % period] for step in range(count)]
        return []
