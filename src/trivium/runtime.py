"""Where and how this process computes: decided once by the command line and passed along, never at import."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Runtime:
    """Device, precision, seed, threads, and this process's place among its peers."""

    device: str = "cpu"
    """`cpu`, `cuda`, or `cuda:N`."""
    precision: Precision = "fp32"
    """Precision of matrix products; weights and optimizer state stay fp32 in training."""
    seed: int = 0
    """The seed every random draw of the run is derived from."""
    threads: int = 0
    """Compute threads of this process (0: as many as torch chooses)."""
    rank: int = 0
    """This process's number among `world_size`."""
    world_size: int = 1
    """How many processes train together (data parallel, started by `torchrun`)."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def torch_device(self) -> torch.device:
        """The torch device of this process."""
        import torch

        return torch.device(self.device)


def world_from_environment() -> tuple[int, int]:
    """(rank, world size) as `torchrun` sets them; (0, 1) in a plain process."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
