"""The most that tensors held at once while something ran, temporaries inside of kernels included: torch's own count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def most_live_bytes(work: Callable[[], object]) -> int:
    """Bytes, counted from what was held when `work` began; freeing what was there before does not count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    del kept
    changes: list[tuple[int, int, int]] = []

    def collect(event: Any) -> None:
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        for child in event.children:
            collect(child)

    for event in profiler.profiler.kineto_results.experimental_event_tree():  # type: ignore[union-attr]
        collect(event)
    held: dict[int, int] = {}
    now = most = 0
    for _, address, size in sorted(changes):
        if size > 0:
            held[address] = size
            now += size
        else:
            now -= held.pop(address, 0)
        most = max(most, now)
    return most
