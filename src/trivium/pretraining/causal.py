"""Next-token prediction under its old name: `TokenObjective` is the loss of every objective."""

from trivium.pretraining.objective import TokenObjective as CausalObjective

__all__ = ["CausalObjective"]
