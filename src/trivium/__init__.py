"""Trivium: the whole life of a language model in one library and one command.

    import trivium as tv

    tokenizer = tv.Tokenizer.train(["text.txt"], vocab_size=8192)
    bundle = tv.load("runs/quickstart/pretrain/model")
    bundle.generate("Once upon a time").text

The names below are imported when they are first used, so that `import trivium` is quick and does not import
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium import metrics as metrics
    from trivium.checkpoints.bundle import Bundle as Bundle
    from trivium.checkpoints.bundle import load as load
    from trivium.checkpoints.bundle import quantize as quantize
    from trivium.errors import UserError as UserError
    from trivium.finetuning.recipe import FinetuneRecipe as FinetuneRecipe
    from trivium.finetuning.run import finetune as finetune
    from trivium.generation.settings import GenerationSettings as GenerationSettings
    from trivium.planner.plan import plan as plan
    from trivium.planner.settings import PlanSettings as PlanSettings
    from trivium.pretraining.recipe import PretrainRecipe as PretrainRecipe
    from trivium.pretraining.run import pretrain as pretrain
    from trivium.stages.dispatch import resume as resume
    from trivium.tokenizer.bpe import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOME = {
    "Bundle": "trivium.checkpoints.bundle",
    "GenerationSettings": "trivium.generation.settings",
    "PlanSettings": "trivium.planner.settings",
    "PretrainRecipe": "trivium.pretraining.recipe",
    "Tokenizer": "trivium.tokenizer.bpe",
    "UserError": "trivium.errors",
    "finetune": "trivium.finetuning.run",
    "FinetuneRecipe": "trivium.finetuning.recipe",
    "load": "trivium.checkpoints.bundle",
    "metrics": "trivium",
    "plan": "trivium.planner.plan",
    "pretrain": "trivium.pretraining.run",
    "quantize": "trivium.checkpoints.bundle",
    "resume": "trivium.stages.dispatch",
}
"""Where each public name lives; `metrics` is a folder of its own."""

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    from importlib import import_module

    if name not in _HOME:
        from trivium.errors import nearest

        near = nearest(name, _HOME)
        cure = f"; did you mean {near}?" if near else ""
        raise AttributeError(f"module 'trivium' has no attribute {name!r}{cure}")
    home = _HOME[name]
    return import_module(f"trivium.{name}") if home == "trivium" else getattr(import_module(home), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
