"""Processes that train together: data parallel over `torchrun`, without a wrapper around the model.

Every rank holds the whole model and its own share of a step's rows. After accumulation the loop adds up gradients and
counts over the ranks and divides once. Gradients travel in flat buckets of a fixed order and size, so that a run
repeats itself bit for bit. What ranks decide (stop, skip) they decide on equal numbers.

Alone (one process) every operation here is the identity, and no process group is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

# This module keeps the group that exists when it is first imported (as a default argument), and torch imports it at
# the first optimizer step. Imported before there is a group, it keeps none; otherwise gloo's threads would outlive the
# group and, now and then, crash the process at its exit.
import torch.distributed.nn.functional
from torch import Tensor

from trivium.errors import UserError
from trivium.runtime import Runtime

# Gradients are added up in pieces of about this size: large enough for full speed, small beside the gradients.
BUCKET_BYTES = 32 << 20
# So long a rank that ends because of another one waits for that one to end first (torchrun then ends it as well).
SECONDS_TO_SPEAK = 60.0
# Rank 0 learns the tokenizer and measures the finished model while the others wait; torchrun sees a rank that died.
LONGEST_WAIT = timedelta(days=1)


class EndedElsewhere(SystemExit):
    """Another rank has failed, and says why: this one ends without a word."""


@contextlib.contextmanager
def process_group(runtime: Runtime) -> Iterator[None]:
    """Join the other ranks (gloo on CPUs, NCCL on CUDA cards), and leave them at the end."""
    if runtime.world_size == 1:
        yield
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"{' and '.join(missing)} not set: start several processes with torchrun")
    backend = "nccl" if runtime.torch_device().type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=runtime.rank, world_size=runtime.world_size, timeout=LONGEST_WAIT)
    try:
        yield
    except EndedElsewhere:
        # torchrun ends all ranks as soon as one has ended: the one that failed must be the first, having said why.
        time.sleep(SECONDS_TO_SPEAK)
        raise
    finally:
        dist.destroy_process_group()


class Peers:
    """All ranks of a run, this one among them."""

    def __init__(self, runtime: Runtime) -> None:
        self.rank, self.world_size = runtime.rank, runtime.world_size
        self.device = runtime.torch_device()
        if self.world_size > 1 and not dist.is_initialized():
            raise RuntimeError("several ranks need `process_group(runtime)` around the run")

    @property
    def alone(self) -> bool:
        """True when there is one process only."""
        return self.world_size == 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, in fp64, equal on all of them."""
        if self.alone:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.alone:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def from_main(self, value: float) -> float:
        """Rank 0's value: for decisions that must not differ by a rounding."""
        if self.alone:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A part that all ranks leave at the same time; where one fails, the others end too, without a word.

        Only the failing rank knows why and says it. Within, nothing else may be asked of the other ranks.
        """
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = self.largest(0 if failure is None else 1)
        if failure is not None:
            raise failure
        if failed:
            raise EndedElsewhere(2)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if not self.alone:
            dist.barrier()

    def sum_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Add up the ranks' gradients, in place, in flat buckets of one dtype each."""
        if self.alone:
            return
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def check_equal(self, what: str, digest: bytes) -> None:
        """RuntimeError on all ranks when `digest` (32 bytes) is not the same on all of them."""
        if self.alone:
            return
        mine = torch.tensor(list(digest), dtype=torch.int64, device=self.device)
        all_ = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(all_, mine)
        if others := [rank for rank, theirs in enumerate(all_) if not torch.equal(theirs, all_[0])]:
            raise RuntimeError(f"{what}: differ between rank 0 and ranks {others}; they must be equal on all ranks")


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def digest_of_names(names: Iterable[str]) -> bytes:
    """SHA-256 over names."""
    return hashlib.sha256("\n".join(names).encode()).digest()
