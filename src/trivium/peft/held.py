"""What a model remembers of its adapters: `model.adapters`, which is there as long as it has any."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trivium.errors import UserError
from trivium.peft import soft_prompts
from trivium.peft.settings import PeftSettings, VirtualSettings
from trivium.peft.targets import bare_modules, bare_parameters
from trivium.peft.wrapped import Part, Wrapped


@dataclass(frozen=True)
class Adapter:
    """One way of training a model, put on it under a name."""

    name: str
    settings: PeftSettings

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What it trains, by the names of `adapter_state`."""
        return self.added_parameters(model) | self.own_parameters(model)

    def added_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those that were added to the model."""
        if isinstance(self.settings, VirtualSettings):
            return soft_prompts.parameters(model, self.name)
        return {
            f"{module}.{own}": parameter
            for module, part in parts_of(model, self.name).items()
            for own, parameter in part.named_parameters()
        }

    def own_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's own, or the adapter's copies of them."""
        entry = entry_of(model, self.name)
        if entry.copies and not entry.in_place:
            return dict(zip(entry.trained, spare_of(model, self.name), strict=True))
        places = bare_parameters(model)
        return {name: getattr(*places[name]) for name in entry.trained}


@dataclass
class Entry:
    """What is known of one adapter."""

    adapter: Adapter
    trained: tuple[str, ...]
    """The model's own parameters that it trains."""
    copies: bool
    """Whether it trains copies of them."""
    trainable: bool
    in_place: bool = False
    """Whether its copies are in the model now, and the model's own aside."""


class Adapters(nn.Module):
    """The adapters of a model, by name; no part of its forward pass."""

    def __init__(self, learned: frozenset[str]) -> None:
        """`learned`: the parameters that were trainable before there were any."""
        super().__init__()
        self.entries: dict[str, Entry] = {}
        self.active: str | None = None
        self.learned = learned
        # For each adapter, of the parameters it trains copies of, those that are not in the model at the moment.
        self.spare = nn.ModuleDict()


def held_by(model: nn.Module) -> Adapters | None:
    """The adapters of a model, if it has any."""
    held = model._modules.get("adapters")
    return held if isinstance(held, Adapters) else None


def active_adapter(model: nn.Module) -> str | None:
    """The name of the active adapter."""
    held = held_by(model)
    return None if held is None else held.active


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of all adapters, in the order they were added."""
    held = held_by(model)
    return () if held is None else tuple(held.entries)


def entry_of(model: nn.Module, name: str) -> Entry:
    """What is known of an adapter; UserError where there is none of this name."""
    held = held_by(model)
    if held is None or name not in held.entries:
        there = ", ".join(adapter_names(model)) or "none"
        raise UserError(f"this model has no adapter {name!r}; its adapters: {there}")
    return held.entries[name]


def spare_of(model: nn.Module, name: str) -> nn.ParameterList:
    """Of the parameters that an adapter trains copies of, those that are not in the model at the moment."""
    held = held_by(model)
    assert held is not None
    spare = held.spare[name]
    assert isinstance(spare, nn.ParameterList)
    return spare


def parts_of(model: nn.Module, name: str) -> dict[str, Part]:
    """The parts of an adapter by the bare names of the modules they are at."""
    names = {id(module): bare for bare, module in bare_modules(model).items()}
    found: dict[str, Part] = {}
    for module in model.modules():
        if isinstance(module, Wrapped) and name in module.parts:
            part = module.parts[name]
            assert isinstance(part, Part)
            found[names[id(module.base)]] = part
    return found


def tensors_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of an adapter as they are saved."""
    adapter = entry_of(model, name).adapter
    own = {key: value.detach() for key, value in adapter.own_parameters(model).items()}
    if isinstance(adapter.settings, VirtualSettings):
        return soft_prompts.state(model, name) | own
    return {key: value.detach() for key, value in adapter.added_parameters(model).items()} | own
