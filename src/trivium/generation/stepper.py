"""How a model reads on in the texts that `Slots` hold.

A stepper is given ids for some of the slots, of texts that may be of any length, and gives back the scores of what
follows. `PlainStepper` is the general one: any decoder, through its own code, which is handed the slots as its past
(`SlotRows`). Texts of unequal length are padded on the right, so that each position stands at the place of its number
and a text needs to know nothing of its neighbours.

Invariant its test checks, for every kind of decoder: however a text is cut into reads and in whatever company, its
logits are those of one fresh pass. Where the angles of rotary positions grow with the text (`dynamic` scaling), that
can only hold for a text read as it would be alone: each text by itself, and after its first read token by token.

Shapes: n slots named in a call, T ids of each, S places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from trivium.generation.slots import Index, Slots
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder


class Stepper(Protocol):
    """Reads ids and says what may come next. It keeps nothing of the texts: that is all in the slots."""

    def read(self, slots: Slots, which: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Append `ids[i]` (at least one) to slot `which[i]`, for n different slots; lengths grow by as much.

        Returns the logits of what follows the last id of each, (n, V) in the model's type; with `every` those after
        each of its ids, (n, T, V) for T = the most ids of a slot (rows with fewer are padded: garbage follows).
        """
        ...


def grows_with_the_text(config: ModelConfig) -> bool:
    """Whether what is read of a text depends on how it is cut into reads."""
    return config.rope_scaling is not None and config.rope_scaling.method == "dynamic"


class PlainStepper:
    """Any decoder, through its own code."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self._one_by_one = grows_with_the_text(model.config)

    @torch.inference_mode()
    def read(self, slots: Slots, which: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """See `Stepper.read`."""
        if self._one_by_one and (len(which) > 1 or (slots.lengths[which[0]] and len(ids[0]) > 1)):
            return self._read_one_by_one(slots, which, ids, every)
        device, counts = self.model.device, [len(some) for some in ids]
        T = max(counts)
        ids_nT = torch.tensor([[*some, *[0] * (T - len(some))] for some in ids], device=device)
        hidden_nTD, _ = self.model.hidden(ids_nT, cache=SlotRows(slots, which, counts))
        for slot, count in zip(which, counts, strict=True):
            slots.advance(slot, count)
        if every:
            return self.model.logits(hidden_nTD)
        if min(counts) == T:
            return self.model.logits(hidden_nTD[:, -1])
        last_n = torch.tensor(counts, device=device) - 1
        return self.model.logits(hidden_nTD[torch.arange(len(counts), device=device), last_n])

    def _read_one_by_one(self, slots: Slots, which: Sequence[int], ids: Sequence[Sequence[int]], every: bool) -> Tensor:
        """Each text by itself: its beginning in one read, what follows token by token."""
        rows = []
        for slot, some in zip(which, ids, strict=True):
            parts = [[token] for token in some] if slots.lengths[slot] else [some]
            logits = [self.read(slots, [slot], [part], every=True)[0] for part in parts]
            rows.append(torch.cat(logits))
        if not every:
            return torch.stack([logits_TV[-1] for logits_TV in rows])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class SlotRows:
    """Some of the slots as the past of the rows of one pass (a `models.cache.KeyValues`)."""

    def __init__(self, slots: Slots, which: Sequence[int], counts: Sequence[int]) -> None:
        """Slot `which[i]` is about to get `counts[i]` positions more; the pass is padded to the most of them."""
        self.slots, self.which = slots, list(which)
        starts, T = [slots.lengths[slot] for slot in which], max(counts)
        self.length = max(start + count for start, count in zip(starts, counts, strict=True))
        self.segments = None
        self.places: Tensor | None = None
        self._real_M: Tensor | None = None
        slots.reserve(self.length)
        even, first = len(set(starts)) == 1, self.which[0]
        if not even:
            start_n1 = torch.tensor(starts, device=slots.device)[:, None]
            last_n1 = start_n1 + torch.tensor(counts, device=slots.device)[:, None] - 1
            self.places = torch.minimum(start_n1 + torch.arange(T, device=slots.device), last_n1)
        self._where: Index = (slice(first, first + len(which)), slice(None), slice(starts[0], starts[0] + T))
        if not even or min(counts) < T or self.which != list(range(first, first + len(which))):
            self._where = self._scattered(starts, counts, T)

    def _scattered(self, starts: Sequence[int], counts: Sequence[int], T: int) -> Index:
        """Where the real ones of n x T positions go."""
        device = self.slots.device
        rows = list(zip(self.which, starts, counts, strict=True))
        slots_M = torch.tensor([slot for slot, _, count in rows for _ in range(count)], device=device)
        places_M = torch.tensor([start + t for _, start, count in rows for t in range(count)], device=device)
        real = [row * T + t for row, (_, _, count) in enumerate(rows) for t in range(count)]
        self._real_M = torch.tensor(real, device=device)
        return slots_M, slice(None), places_M

    def extended(self, count: int, segments_BT: Tensor | None) -> Self:
        """Room was made when this was made."""
        return self

    def update(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of the newest T positions; returns those of all places, (n, K, S, N) each."""
        if self._real_M is not None:
            k_BKTN, v_BKTN = (x.transpose(1, 2).flatten(0, 1)[self._real_M] for x in (k_BKTN, v_BKTN))
        self.slots.write(layer, self._where, k_BKTN, v_BKTN)
        return self.slots.read(layer, self.which, self.length)
