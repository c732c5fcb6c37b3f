"""A run says what memory it will need before it begins, and does not begin where that cannot fit.

What is there for a run on a CPU is the least of: the memory that is free now together with what this process already
holds; the limits of its control groups, likewise; the limits set on the process itself (`ulimit -v` and `-d`), less
the addresses that its libraries have taken, which hold no memory and count. On a card it is the card's free memory.
Swap is not counted: a run that swaps is as good as stopped.

Invariant its test checks: a run whose plan exceeds this is refused before anything is read or written, unless it was
told to go on; a run that fits never is.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trivium.errors import UserError
from trivium.progress import SILENT, Progress, short_bytes
from trivium.runtime import Runtime

if TYPE_CHECKING:
    from trivium.planner.suggestions import Suggestion

PART_NAMES = {
    "weights_bytes": "weights",
    "gradients_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activations_bytes": "activations",
    "logits_bytes": "logits",
    "kv_cache_bytes": "KV cache",
    "framework_bytes": "torch itself",
    "allocator_bytes": "holes between blocks",
}
# Parts said by name; smaller ones are added up.
NAMED_PARTS = 4
SUGGESTIONS_SHOWN = 3
CGROUPS = Path("/sys/fs/cgroup")
# Of both versions of control groups: the files of limit and use, and what memory.stat calls files that can be dropped.
GROUP_FILES = {
    "1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "2": ("memory.max", "memory.current", "inactive_file"),
}

# What a recipe says for each setting of a plan.
IN_THE_RECIPE = {
    "rows_per_micro_batch": "data.rows_per_micro_batch={}",
    "rows_per_step": "data.rows_per_step={}",
    "sequence_length": "data.sequence_length={}",
    "precision": "training.precision={}",
    "gradient_checkpointing": "training.gradient_checkpointing={}",
}

Suggest = Callable[[], Sequence[str]]


class Stated(Protocol):
    """A plan: of one model's step, or of a stage."""

    @property
    def peak_bytes(self) -> int:
        """All parts together."""

    def to_dict(self) -> dict[str, int]:
        """The parts by name."""


def state_plan(
    plan: Stated,
    what: str,
    *,
    device: str = "cpu",
    processes: int = 1,
    ignore: bool = False,
    override: str = "--ignore-plan",
    suggest: Suggest = tuple,
    progress: Progress = SILENT,
) -> None:
    """Say the plan of `what` (generation, this run, ...) in one line; UserError where it cannot fit.

    `processes`: how many, each with such a plan, share the memory. `ignore`: go on all the same; `override` is how
    the user says so. `suggest` gives changes that would fit, best first, each as a few words with what it would need;
    it is called only for the refusal.
    """
    there = available_bytes(device) // processes
    shared = f" to each of {processes} processes" if processes > 1 else ""
    missing = plan.peak_bytes - there
    progress.note(f"planned memory: {sentence(plan)}; {short_bytes(there)} available{shared}")
    if missing <= 0:
        return
    if ignore:
        progress.note(f"that is {short_bytes(missing)} more than there is; going on, as told by {override}")
        return
    cures = list(suggest())[:SUGGESTIONS_SHOWN]
    numbered = ", ".join(f"({number}) {cure}" for number, cure in enumerate(cures, 1))
    raise UserError(
        f"{what} needs {sentence(plan)}, and {short_bytes(there)} is available{shared}: "
        f"{short_bytes(missing)} too little; nothing was begun. {f'What would help: {numbered}. ' if cures else ''}"
        f"To try it all the same: {override}"
    )


def applicable(found: Iterable[Suggestion], words: Mapping[str, str]) -> list[str]:
    """The suggestions that a run can follow, said as it is told: `--quantize int8: ... (95.1 MB)`.

    `words` has for each setting of a plan what the user writes, `{}` standing for the value; what has none is no cure.
    """
    lines = []
    for each in found:
        changes = [change.split("=", 1) for change in each.change.split()]
        if all(name in words for name, _ in changes):
            written = " ".join(words[name].format(value) for name, value in changes)
            lines.append(f"{written}: {each.why} ({short_bytes(each.peak_bytes)})")
    return lines


def sentence(plan: Stated) -> str:
    """The peak and its main parts: `1.02 GB (weights 538 MB, torch itself 336 MB, ...)`."""
    facts = plan.to_dict()
    parts = sorted(((size, PART_NAMES[key]) for key, size in facts.items() if key in PART_NAMES and size), reverse=True)
    named = [f"{name} {short_bytes(size)}" for size, name in parts[:NAMED_PARTS]]
    rest = sum(size for size, _ in parts[NAMED_PARTS:])
    return (
        f"{short_bytes(plan.peak_bytes)} ({', '.join([*named, *([f'the rest {short_bytes(rest)}'] if rest else [])])})"
    )


def available_bytes(device: str = "cpu") -> int:
    """The memory a run of this process may come to hold on `device`, what it already holds included."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    free, held = _free_bytes()
    memberships = _text(Path("/proc/self/cgroup"))
    return min([free + held, *group_limits(memberships, CGROUPS, held), *_limits_of_process(held)])


def processes_here(runtime: Runtime) -> int:
    """How many processes of the run share the memory of this one."""
    if runtime.device.startswith("cuda"):
        return 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", runtime.world_size))


def _free_bytes() -> tuple[int, int]:
    """(memory free for new use, caches counted as free; memory this process holds)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        (free,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        return free, pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):  # not Linux
        import psutil

        return int(psutil.virtual_memory().available), int(psutil.Process().memory_info().rss)


def group_limits(memberships: str, root: Path, held: int) -> list[int]:
    """What each control group leaves a process that holds `held` bytes; files that a group has cached can be dropped.

    `memberships`: /proc/self/cgroup of the process; `root`: where control groups are mounted.
    """
    limits = []
    for line in memberships.splitlines():
        number, controllers, name = line.split(":", 2)
        version = "2" if number == "0" else "1" if "memory" in controllers.split(",") else ""
        if not version:
            continue
        top = root if version == "2" else root / "memory"
        folder = top / name.strip("/")
        limits += [
            limit + held
            for group in (folder, *folder.parents)
            if group.is_relative_to(top) and (limit := _left_by(group, version)) is not None
        ]
    return limits


def _left_by(group: Path, version: str) -> int | None:
    """What one group leaves; None where it sets no limit."""
    most, used, cached = GROUP_FILES[version]
    try:
        limit = int((group / most).read_text())  # "max": no limit
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - int((group / used).read_text()) + int(facts[cached]))
    except (OSError, ValueError, KeyError):
        return None


def _limits_of_process(held: int) -> list[int]:
    """What `ulimit -v` and `-d` leave a process that holds `held` bytes, where they are set."""
    facts = dict(line.split(":", 1) for line in _text(Path("/proc/self/status")).splitlines() if ":" in line)
    limits = []
    for which, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, _ = resource.getrlimit(which)
        if limit != resource.RLIM_INFINITY:
            counted = int(facts.get(name, "0 kB").split()[0]) << 10
            limits.append(max(0, limit - counted) + held)
    return limits


def _text(path: Path) -> str:
    """A system file, empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
