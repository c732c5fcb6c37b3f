"""The parts of a peak of memory, as numbers that can be added, scaled and shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from trivium.planner.memory import MemoryPlan


@dataclass(frozen=True)
class Parts:
    """Bytes on one device at one moment, by what they hold; their sum is what is in memory then."""

    weights_bytes: int = 0
    """Of every model that is in memory, copies in another precision included."""
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    activations_bytes: int = 0
    """What the backward pass needs, and temporaries."""
    logits_bytes: int = 0
    kv_cache_bytes: int = 0
    rollouts_bytes: int = 0
    """What is kept of generated texts until they have been learned from."""
    framework_bytes: int = 0
    """The process before any model exists, or the context of a card."""
    allocator_bytes: int = 0
    """Memory that the allocator holds and cannot use."""

    @classmethod
    def of(cls, plan: MemoryPlan) -> Parts:
        """The parts of a plan of one model; what it tells apart further counts as activations."""
        values = plan.to_dict()
        known = {item.name: int(values.get(item.name, 0)) for item in fields(cls)}
        known["activations_bytes"] += int(values["peak_bytes"]) - sum(known.values())
        return cls(**known)

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())

    @property
    def tensors_bytes(self) -> int:
        """All that tensors hold: the peak without framework and allocator."""
        return self.peak_bytes - self.framework_bytes - self.allocator_bytes

    def changed(self, **parts: int) -> Parts:
        """Other numbers for some parts of a training step; the allocator's share of what tensors hold stays."""
        new = replace(self, **parts)
        return replace(new, allocator_bytes=round(self.allocator_bytes * new.tensors_bytes / self.tensors_bytes))

    def to_dict(self) -> dict[str, int]:
        """The parts and `peak_bytes`, ready for JSON."""
        return {**asdict(self), "peak_bytes": self.peak_bytes}
