"""A few new tokens through all layers of a decoder in one call to the kernels.

Where a step of a small model is some hundreds of operators of torch, most of its time is spent between them. Here the
addresses of all weights are gathered once (`fast_program.py`), and a step is one native call, in which torch's threads
meet a few times per layer (`kernels/cpp/step.h`). Long prompts are matrix products that torch does best, and go through
the model's own code; but those of int8_dynamic are done best here, where the processor multiplies bytes.

Everything between the weights is computed in fp32, also for models in bf16, whose own code rounds after every operator.

Invariants its tests check: logits equal those of the model's own code; those of a text do not depend, bit for bit, on
the texts read with it, on threads, or on how its tokens were cut into steps (as long as the kernels read them).

Shapes: n slots named in a call, T ids of each, M rows (ids of all slots together), D width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int64, cast

import torch
from torch import Tensor, nn

from trivium.generation.fast_program import DENSE, FastProgram, Unknown, addresses, matrices_of
from trivium.generation.slots import Slots
from trivium.generation.stepper import PlainStepper
from trivium.kernels import structures
from trivium.kernels.native import native
from trivium.kernels.structures import MATRIX_KINDS, KeysValues, Step
from trivium.models.decoder import Decoder
from trivium.models.heads import capped

# Up to so many new rows the kernels are faster than the model's own code.
FEW_ROWS = 32
PARTS = ("products", "attention", "head")
CHUNK = 128
"""Positions that a unit of attention looks at (`kernels/cpp/attention.h`)."""
SCRATCH_FLOATS = 1 << 23
"""For what attention finds in each chunk, when there are many rows."""
SPARE_FLOATS = 1 << 20
"""So that scratch memory need not be made anew for every row more."""


class FastStepper:
    """A `Stepper` for decoders that the kernels know. The model's weights must stay where they are."""

    def __init__(self, model: Decoder) -> None:
        """ValueError for a model that is not supported."""
        library = native()
        try:
            self._program = FastProgram(model)
        except Unknown as unknown:
            raise ValueError(f"the kernels do not know this model: {unknown}") from unknown
        if library is None:
            raise ValueError("the kernels were not built here")
        self.model, self._native, self._plain = model, library, PlainStepper(model)
        # A dense table of tokens is met by few rows even of a long prompt: those whose logits are asked for.
        blocks = [matrix for layer in self._program.layers for matrix in matrices_of(layer)]
        self._any_rows = library.multiplies_bytes and all(m.kind == MATRIX_KINDS["int8_dynamic"] for m in blocks)
        self._scratch = torch.empty(0)
        self._slots: tuple[Slots, int] | None = None
        self.seconds: Tensor | None = None
        """(3,) fp64 when set: where the kernels add the time they spend, by `PARTS`."""

    @classmethod
    def of(cls, model: nn.Module) -> FastStepper | None:
        """One for `model`, if the kernels are built and know all that is in it."""
        try:
            return cls(model) if isinstance(model, Decoder) else None
        except ValueError:
            return None

    @torch.inference_mode()
    def read(self, slots: Slots, which: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """See `Stepper.read`."""
        calls = self._calls(slots, which, ids)
        found: dict[int, Tensor] = {}
        for texts in calls:
            some = [ids[text] for text in texts]
            own = self._any_rows or max(map(len, some)) <= FEW_ROWS
            read = self._read if own else self._plain.read
            logits = read(slots, [which[text] for text in texts], some, every=every)
            if len(calls) == 1:
                return logits
            found |= {text: row[: len(ids[text])] if every else row for text, row in zip(texts, logits, strict=True)}
        rows = [found[text] for text in range(len(ids))]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if every else torch.stack(rows)

    def _calls(self, slots: Slots, which: Sequence[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """The texts (numbers from 0) that are read together.

        Each text's own length decides who reads it, so that its company does not. A call takes a bounded number of rows
        and of scratch memory.
        """
        calls: list[list[int]] = []
        long, rows, floats = [], 0, 0
        for text, (slot, some) in enumerate(zip(which, ids, strict=True)):
            if len(some) > FEW_ROWS and not self._any_rows:
                long.append(text)
                continue
            needed = len(some) * self._floats_of_row(slots.lengths[slot] + len(some))
            full = rows + len(some) > FEW_ROWS and not self._any_rows
            if not calls or full or floats + needed > SCRATCH_FLOATS:
                calls.append([])
                rows = floats = 0
            calls[-1].append(text)
            rows, floats = rows + len(some), floats + needed
        return [*calls, long] if long else calls

    def _floats_of_row(self, length: int) -> int:
        """What attention keeps of a row of a text with `length` positions."""
        return (length // CHUNK + 1) * self.model.config.heads * (self.model.config.head_width + 2)

    def _read(self, slots: Slots, which: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """The same by the kernels; of a text that is too long for one call piece by piece."""
        if len(ids) == 1:
            most = max(FEW_ROWS, SCRATCH_FLOATS // self._floats_of_row(slots.lengths[which[0]] + len(ids[0])))
            if len(ids[0]) > most:
                pieces = [ids[0][at : at + most] for at in range(0, len(ids[0]), most)]
                parts = [self._read(slots, which, [piece], every=every) for piece in pieces]
                return torch.cat(parts, 1) if every else parts[-1]
        counts = [len(some) for some in ids]
        rows, starts = sum(counts), [slots.lengths[slot] for slot in which]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        slots.reserve(max(ends))
        self._program.reach(slots.capacity)
        positions_M = torch.tensor([p for pair in zip(starts, ends, strict=True) for p in range(*pair)])
        embedded_MD = self._embedded(torch.tensor([token for some in ids for token in some]), positions_M, max(ends))
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        chosen = range(rows) if every else [first + count - 1 for first, count in zip(firsts, counts, strict=True)]
        logits = self._step(slots, list(zip(which, starts, counts, firsts, strict=True)), embedded_MD, chosen)
        for slot, count in zip(which, counts, strict=True):
            slots.advance(slot, count)
        if not every:
            return logits
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(logits, counts)), batch_first=True)

    def _embedded(self, ids_M: Tensor, positions_M: Tensor, length: int) -> Tensor:
        """(M, D) fp32: what enters the first layer, by the model's own code."""
        stack = self.model.stack
        stack._refuse_unknown(positions_M, None, length)
        return stack._embedded(self.model.embedding(ids_M)[None], positions_M[None], None)[0].float().contiguous()

    def _step(
        self, slots: Slots, sequences: list[tuple[int, int, int, int]], embedded_MD: Tensor, chosen: Sequence[int]
    ) -> Tensor:
        """One call: logits of the rows chosen. `sequences`: slot, start, count and first row of each."""
        program = self._program.program
        logits = torch.empty(len(chosen), program.head.outputs)
        kept = (structures.Sequence * len(sequences))(*(structures.Sequence(*each) for each in sequences))
        step = Step(
            program=ctypes.pointer(program),
            slots=ctypes.pointer(self._keys_values(slots)),
            sequences=kept,
            num_sequences=len(sequences),
            rows=len(embedded_MD),
            embedded=embedded_MD.data_ptr(),
            chosen=(c_int64 * len(chosen))(*chosen),
            num_chosen=len(chosen),
            logits=logits.data_ptr(),
            seconds=None if self.seconds is None else self.seconds.data_ptr(),
        )
        library, level = self._native.library, self._native.level
        threads = self._native.threads(self._program.weights_of_a_layer)
        needed = library.trivium_scratch(level, step, threads)
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed + min(needed, SPARE_FLOATS))
        library.trivium_step(level, step, self._scratch.data_ptr(), threads)
        return capped(logits, self.model.config.logit_softcap).to(self.model.dtype)

    def _keys_values(self, slots: Slots) -> KeysValues:
        """Where the slots' buffers are; gathered anew when they have moved."""
        if self._slots is None or self._slots[0] is not slots or self._slots[1] != slots.version:
            buffers = [slots.keys, slots.values, slots.key_scales, slots.value_scales]
            self._arrays = [addresses(tensors) for tensors in buffers]
            stored = slots.keys[0].dtype
            kind = "int8" if stored == torch.int8 else DENSE[stored]
            arrays = [cast(array, POINTER(ctypes.c_void_p)) for array in self._arrays]
            self._buffers = KeysValues(MATRIX_KINDS[kind], slots.capacity, *arrays)
            self._slots = slots, slots.version
        return self._buffers
