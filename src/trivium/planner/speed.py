"""How fast a machine is, for plans: as `trivium doctor` measured it, else measured here in a moment without torch.

`trivium doctor` leaves its figures in the user's data directory, and plans take them from there as long as the
processor's abilities and the cores are the same. A plan must answer at once, and importing torch alone takes a second;
so where doctor has not been asked, a product of numpy and one pass over memory are timed. numpy has no bf16: its rate
is then taken as twice that of fp32 on processors that multiply bf16 in hardware, as the one of fp32 on others, and the
plan says so.

Invariants its test checks: a file of `trivium doctor --json` gives back its own figures; what is no such file is
refused; figures of another machine are not taken for those of this one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from trivium.errors import UserError
from trivium.files import write_atomically
from trivium.machine import best_seconds, cpu_flags, has_fast_bf16, usable_cores
from trivium.planner.history import data_directory

SIDE = 1024
READ_BYTES = 1 << 26
SECONDS = 0.08
LARGEST_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Speed:
    """Ceilings of one device."""

    fp32_flops: float
    """Matrix products in fp32, operations per second."""
    bf16_flops: float
    """The same in bf16; fp16 is taken to be as fast."""
    read_bytes: float
    """Reading memory, bytes per second."""
    source: str
    """Where the figures are from, in words."""

    def flops(self, precision: str) -> float:
        """The rate of matrix products in a precision."""
        return self.fp32_flops if precision == "fp32" else self.bf16_flops


class _Rates(BaseModel):
    """One device in a file of `trivium doctor --json`."""

    device: str
    fp32_gflops: float = Field(gt=0, allow_inf_nan=False)
    bf16_gflops: float = Field(gt=0, allow_inf_nan=False)
    read_gb_per_s: float = Field(gt=0, allow_inf_nan=False)


class _Machine(BaseModel):
    processor: str = ""
    flags: list[str] = []
    usable_cores: int = 0
    speeds: list[_Rates] = Field(min_length=1)


def remember(values: Mapping[str, Any]) -> None:
    """Keep what `trivium doctor` found of this machine, for plans to come, where something can be written."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        write_atomically(_kept(), json.dumps(values))


def this_speed(device: str) -> Speed | None:
    """The speed of this machine: what doctor found, else measured in a moment; None for an unmeasured card."""
    with contextlib.suppress(UserError, RuntimeError):
        machine = _read(_kept())
        if (tuple(machine.flags), machine.usable_cores) == (cpu_flags(), usable_cores()):
            return _speed(machine, device, "this machine, by trivium doctor")
    return quick_speed() if device == "cpu" else None


def saved_speed(file: Path, device: str) -> Speed:
    """The speed of the first device whose name begins with `device`, from a file of `trivium doctor --json`."""
    machine = _read(file)
    return _speed(machine, device, f"{machine.processor or 'a machine'}, by trivium doctor ({file})")


def _kept() -> Path:
    return data_directory() / "machine.json"


def _read(file: Path) -> _Machine:
    cure = "write one with: trivium doctor --json > machine.json"
    try:
        with file.open("rb") as opened:
            return _Machine.model_validate_json(opened.read(LARGEST_FILE_BYTES))
    except OSError as error:
        raise UserError(f"machine: {file} cannot be read ({error.strerror}); {cure}") from None
    except ValidationError:
        raise UserError(f"machine: {file} is not a description of a machine; {cure}") from None


def _speed(machine: _Machine, device: str, source: str) -> Speed:
    for rates in machine.speeds:
        if rates.device.partition(":")[0] == device:
            figures = (1e9 * rates.fp32_gflops, 1e9 * rates.bf16_gflops, 1e9 * rates.read_gb_per_s)
            return Speed(*figures, f"{rates.device} of {source}")
    raise UserError(f"machine: no {device} was measured there, only {', '.join(r.device for r in machine.speeds)}")


def quick_speed() -> Speed:
    """This CPU, measured in about a quarter of a second."""
    import numpy as np

    numbers = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    flops = 2 * SIDE**3 / best_seconds(lambda: numbers @ numbers, SECONDS)
    memory = np.ones(READ_BYTES // 4, dtype=np.float32)
    read = READ_BYTES / best_seconds(lambda: memory.sum(), SECONDS)
    factor = 2 if has_fast_bf16() else 1
    bf16 = f"bf16 taken as {'twice' if factor == 2 else 'no faster than'} fp32"
    source = f"this CPU ({usable_cores()} cores), measured just now with numpy; {bf16}: trivium doctor measures it"
    return Speed(flops, factor * flops, read, source)
