"""Next-token prediction (Shannon, 1951): the loss of a causal language model.

The sum over positions t of -log p(target_t | ids_1..t), where the batch says what the targets are (packing shifts
them by one and leaves out those that would cross into another document). Logits exist for a chunk of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor, nn

from trivium.data.batch import Batch
from trivium.training.cross_entropy import chunked_cross_entropy
from trivium.training.objective import LossReport


class CausalModel(Protocol):
    """What the objective asks of a model; `models/transformer.py::Decoder` is one."""

    def hidden(
        self, ids_BT: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Hidden states after the final norm, (B, T, D), and a cache."""
        ...

    def head_weight(self) -> Tensor:
        """(V, D): the projection to the vocabulary."""
        ...


@dataclass(frozen=True)
class CausalObjective:
    """Cross-entropy of the next token, summed over the targets, in nats."""

    chunk_tokens: int = 0
    """Positions whose logits exist at a time; 0 chooses."""
    accuracy: bool = False
    """Also count the targets that were the likeliest token, as "correct" among the scalars; costs one pass more."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss of `batch`."""
        causal = cast(CausalModel, model)
        hidden_BTD, _ = causal.hidden(batch.ids, positions=batch.positions, segments=batch.segments)
        result = chunked_cross_entropy(
            hidden_BTD,
            causal.head_weight(),
            batch.targets,
            chunk_tokens=self.chunk_tokens,
            want_correct=self.accuracy,
        )
        scalars = {} if result.correct is None else {"correct": result.correct}
        return LossReport(result.sum, result.count, scalars)
