"""Texts that begin alike share the keys and values of their common beginning.

A slot keeps what it holds after its text has ended, until it is needed: the longest unused first. So a new text looks
among all slots, of running texts and of ended ones, for the longest beginning it shares, and goes on from there: in
that very slot, when all of it is shared and its text has ended, else from a copy. The budget is that of the slots.

Invariant its test checks: a text is the same whatever it goes on from.
"""

from __future__ import annotations

from collections.abc import Sequence

from trivium.generation.slots import Slots

# A shared beginning shorter than this is read again, which costs less than copying it.
SHORTEST_SHARED = 16


class Prefixes:
    """What each slot holds the keys and values of."""

    def __init__(self, slots: Slots, *, shares: bool = True) -> None:
        """`shares` off: every text is read from its beginning."""
        self.slots, self.shares = slots, shares
        self.saved = 0
        """How many tokens did not have to be read."""
        self._texts: dict[int, Sequence[int]] = {}
        """The ids of the text in each slot that had one; those beyond the slot's length are not read yet."""
        self._running: set[int] = set()

    def claim(self, ids: Sequence[int]) -> int:
        """A slot for a text that begins with `ids`; it holds what of them need not be read, never all."""
        source, length = self._longest(ids)
        target = self.slots.free[0]
        if source in self.slots.free and length == self.slots.lengths[source]:
            target = source
        elif source in self.slots.free and source != target:
            self.slots.release(self.slots.claim(source))  # it was of use: the last to be given up
        self.slots.claim(target)
        if length:
            self.slots.copy_prefix(source, target, length)
        else:
            self.slots.truncate(target, 0)
        self._texts[target] = ids
        self._running.add(target)
        self.saved += length
        return target

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """A text has ended: `ids` is all of it, of which the slot holds the first."""
        self.slots.release(slot)
        self._texts[slot] = ids
        self._running.remove(slot)

    def forget(self, slot: int) -> None:
        """A text has ended of which nothing is of use."""
        self.slots.wipe(slot)
        self.release(slot, ())

    def about_to_be_read(self, ids: Sequence[int]) -> bool:
        """Whether a running text is reading a longer beginning of `ids` than any that is held already."""
        if not self.shares:
            return False
        enough = self._longest(ids)[1] + SHORTEST_SHARED
        shared = {slot: self._shared(slot, ids) for slot in self._running}
        return any(enough <= length > self.slots.lengths[slot] for slot, length in shared.items())

    def _longest(self, ids: Sequence[int]) -> tuple[int, int]:
        """(slot, length) of the longest beginning of `ids` that is held; length 0 when none is worth it."""
        if not self.shares:
            return -1, 0
        held = [(min(self.slots.lengths[slot], self._shared(slot, ids)), slot) for slot in self._texts]
        length, slot = max(held, default=(0, -1))
        return (slot, length) if length >= SHORTEST_SHARED else (-1, 0)

    def _shared(self, slot: int, ids: Sequence[int]) -> int:
        """How many tokens of `ids` the text of a slot begins with; never all, since the last must be read."""
        return min(common_beginning(self._texts[slot], ids), len(ids) - 1)


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements two sequences of the same type have in common from the start."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing slices is a hundred times as fast as elements
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
