"""The loss of every objective of pretraining: cross-entropy of the targets that the batch names.

The sum over learned positions of -log p(target | what the model sees there). What is seen and what is learned is the
batch's affair: packing shifts targets by one (causal), masking puts them where tokens are hidden, a decoder of two
stacks sees its source. Hidden states of positions without a target never reach the head; logits exist for a chunk of
positions at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from trivium.data.batch import IGNORED, Batch
from trivium.models.base import LanguageModel
from trivium.training.cross_entropy import chunked_cross_entropy
from trivium.training.forward import target_hidden
from trivium.training.objective import LossReport


@dataclass(frozen=True)
class TokenObjective:
    """Cross-entropy of the targets, summed, in nats."""

    chunk_tokens: int = 0
    """Positions whose logits exist at a time; 0 chooses."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all ids."""
    accuracy: bool = False
    """Also count the targets that were the likeliest token, as "correct" among the scalars; costs one pass more."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss of `batch`."""
        assert isinstance(model, LanguageModel)
        hidden, targets = target_hidden(model, batch), batch.targets
        if model.config.head_hidden != "none":  # the head's own layer is spared what has no target
            learned_BT = targets != IGNORED
            hidden, targets = hidden[learned_BT], targets[learned_BT]
        hidden, weight_VD, bias_V, softcap = model.projection(hidden)
        result = chunked_cross_entropy(
            hidden,
            weight_VD,
            targets,
            bias_V,
            softcap,
            label_smoothing=self.label_smoothing,
            chunk_tokens=self.chunk_tokens,
            want_correct=self.accuracy,
        )
        scalars = {} if result.correct is None else {"correct": result.correct}
        return LossReport(result.sum, result.count, scalars)
