"""Keys and values of several independent texts in buffers that stay where they are.

A slot is a row of the buffers: position p of a slot's text is at place p, so a slot needs nothing but its own length to
be read, grown or cut, whatever its neighbours do. (`models.cache.Cache` grows all of its rows together; this is for
texts that come and go.) Nothing is moved when a text ends; the buffers are made anew only where a text outgrows them,
and never beyond a budget of bytes.

With `kv="int8"` each vector of one head at one position is stored as codes round(x / s) of -127..127 with an fp32 scale
s = max|x| / 127, a quarter of the bytes of fp32 (and 4/N of a byte more per element).

Invariants its tests check: what is written is read back, exactly, or with int8 to within s / 2 of every element; no
slot's content depends on another's; the bytes held are those the budget was asked for.

Shapes: S slots, n of them named in a call, T or M places written, K key/value heads, N head width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.models.config import ModelConfig

# "model": as the model computes them; "int8": codes and a scale per head and position.
Storage = Literal["model", "int8"]

# Places in the buffers.
Index = tuple[slice | Tensor, slice, slice | Tensor]

# Capacity is a multiple of this many positions.
CAPACITY_STEP = 64


def bytes_per_position(config: ModelConfig, dtype: torch.dtype, kv: Storage = "model") -> int:
    """The bytes that keys and values of one position of one slot take."""
    vector = config.head_width * dtype.itemsize if kv == "model" else config.head_width + 4
    return 2 * config.layers * config.kv_heads * vector


class Slots:
    """Keys and values of `count` independent texts."""

    keys: list[Tensor]
    """L times (S, K, capacity, N), contiguous; int8 codes with `kv="int8"`. From a slot's length on: any finite
    numbers (whoever reads rows of unequal length multiplies them by 0)."""
    values: list[Tensor]
    """L times (S, K, capacity, N)."""
    key_scales: list[Tensor]
    """L times (S, K, capacity) fp32, contiguous; empty unless `kv="int8"`."""
    value_scales: list[Tensor]
    """L times (S, K, capacity) fp32."""
    lengths: list[int]
    """How many positions of each slot are held; also of free slots, whose content stays until they are claimed."""
    version: int
    """Grows whenever the buffers were made anew, so that whoever kept their addresses knows."""

    def __init__(
        self,
        config: ModelConfig,
        count: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kv: Storage = "model",
        max_bytes: int | None = None,
    ) -> None:
        """`count` free slots with room for `capacity` positions each, which may grow up to `max_bytes` in all.

        `dtype` is what the model computes in, and what is stored unless `kv` says otherwise. Raises UserError when
        the budget is too small for that.
        """
        self.config, self.count, self.kv, self.dtype = config, count, kv, dtype
        self.device, self.max_bytes = torch.device(device), max_bytes
        self.lengths, self.version, self.capacity = [0] * count, 0, 0
        self.keys, self.values, self.key_scales, self.value_scales = [], [], [], []
        self._free = list(range(count))
        self.reserve(capacity)

    @classmethod
    def for_model(
        cls,
        model: torch.nn.Module,
        count: int,
        capacity: int,
        *,
        kv: Storage = "model",
        max_bytes: int | None = None,
    ) -> Slots:
        """Slots on the device and in the type of a `models.decoder.Decoder`."""
        config, device, dtype = model.config, model.device, model.dtype
        assert isinstance(config, ModelConfig) and isinstance(device, torch.device) and isinstance(dtype, torch.dtype)
        return cls(config, count, capacity, device=device, dtype=dtype, kv=kv, max_bytes=max_bytes)

    @property
    def free(self) -> Sequence[int]:
        """The slots nobody has claimed, the longest free first."""
        return self._free

    @property
    def bytes(self) -> int:
        """How many bytes the buffers take."""
        return self.count * self.capacity * bytes_per_position(self.config, self.dtype, self.kv)

    def claim(self, slot: int | None = None) -> int:
        """Take a free slot (that one, or the longest free), whose content and length stay until `truncate`."""
        chosen = self._free[0] if slot is None else slot
        self._free.remove(chosen)
        return chosen

    def release(self, slot: int) -> None:
        """Give a slot back; what it holds stays readable until somebody claims it."""
        assert slot not in self._free
        self._free.append(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all positions of a slot from `length` on."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def wipe(self, slot: int) -> None:
        """Forget all of a slot, whose numbers may not be finite."""
        for buffer in (*self.keys, *self.values, *self.key_scales, *self.value_scales):
            buffer[slot] = 0
        self.lengths[slot] = 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of `source` all that `target` holds."""
        assert length <= self.lengths[source]
        if source != target:
            for buffers in (self.keys, self.values, self.key_scales, self.value_scales):
                for buffer in buffers:
                    buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length

    def most_positions(self) -> int | None:
        """The largest capacity the budget allows; None: without end."""
        if self.max_bytes is None:
            return None
        return self.max_bytes // max(1, self.count * bytes_per_position(self.config, self.dtype, self.kv))

    def reserve(self, length: int) -> None:
        """Make room for `length` positions in each slot; UserError when that is beyond the budget."""
        if length <= self.capacity and self.keys:
            return
        most = self.most_positions()
        if most is not None and length > most:
            needed = length * self.count * bytes_per_position(self.config, self.dtype, self.kv)
            raise UserError(
                f"{self.count} texts of {length} tokens need {needed:,} bytes of keys and values, and "
                f"{self.max_bytes:,} are allowed: continue fewer texts together, or shorter ones"
            )
        grown = max(length, 2 * self.capacity)
        grown = -(-grown // CAPACITY_STEP) * CAPACITY_STEP
        self._resize(grown if most is None else max(length, min(grown, most)))

    @torch.inference_mode(mode=False)  # tensors made inside could not be written outside
    def _resize(self, capacity: int) -> None:
        """New buffers with the old content; one layer after another, so that little is held twice."""
        shape = (self.count, self.config.kv_heads, capacity, self.config.head_width)
        used = max(self.lengths)
        stored = torch.int8 if self.kv == "int8" else self.dtype

        def grow(buffers: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
            for layer in range(self.config.layers):
                new = torch.zeros(shape, device=self.device, dtype=dtype)
                if layer < len(buffers):
                    new[:, :, :used] = buffers[layer][:, :, :used]
                    buffers[layer] = new
                else:
                    buffers.append(new)

        grow(self.keys, shape, stored)
        grow(self.values, shape, stored)
        if self.kv == "int8":
            grow(self.key_scales, shape[:3], torch.float32)
            grow(self.value_scales, shape[:3], torch.float32)
        self.capacity, self.version = capacity, self.version + 1

    def write(self, layer: int, where: Index, k: Tensor, v: Tensor) -> None:
        """Store keys and values, (n, K, T, N) or (M, K, N) as `where` has it.

        `where` indexes slots, heads and places: (slice, slice(None), slice) for T neighbouring places of neighbouring
        slots, or (slots_M, slice(None), places_M), int64, for M places anywhere. Lengths are not changed: `advance`
        does that, once for all layers.
        """
        for buffers, scales, x in ((self.keys, self.key_scales, k), (self.values, self.value_scales, v)):
            if self.kv == "int8":
                x, scale = quantized(x)
                scales[layer][where] = scale
            buffers[layer][where] = x.to(buffers[layer].dtype)

    def advance(self, slot: int, count: int) -> None:
        """A slot holds `count` positions more, which `write` has stored in every layer."""
        self.lengths[slot] += count
        assert self.lengths[slot] <= self.capacity

    def read(self, layer: int, which: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """The first `length` places of the slots named, (n, K, length, N) each, in the model's type.

        Neighbouring slots in order, unquantized, are views; all else are copies.
        """
        keys, values = self._rows(self.keys[layer], which, length), self._rows(self.values[layer], which, length)
        if self.kv == "int8":
            key_scales = self._rows(self.key_scales[layer], which, length)
            value_scales = self._rows(self.value_scales[layer], which, length)
            return dequantized(keys, key_scales, self.dtype), dequantized(values, value_scales, self.dtype)
        return keys, values

    def _rows(self, buffer: Tensor, which: Sequence[int], length: int) -> Tensor:
        first = which[0]
        if list(which) == list(range(first, first + len(which))):
            return buffer[first : first + len(which), :, :length]
        return buffer[:, :, :length].index_select(0, torch.tensor(which, device=self.device))


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N) -> int8 codes (..., N) and fp32 scales (...,): x is within scale / 2 of codes * scale."""
    wide = x.float()
    scale = wide.abs().amax(-1) / 127
    divisor = torch.where(scale == 0, 1.0, scale)
    return (wide / divisor[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


def dequantized(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes (..., N) times scale (...,), computed in fp32."""
    return (codes.float() * scale[..., None]).to(dtype)
