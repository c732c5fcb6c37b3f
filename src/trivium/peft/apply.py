"""The one door to adapters: put one on a model, switch, take it off, merge it.

`add_adapter` freezes the model, puts in what the method adds and leaves trainable what the method trains, and beside it
what `also_train` names. A model can hold several adapters, of several methods; one is active, or none. Their weights
are in fp32, whatever the base is stored in.

What `also_train` names is trained as a copy that belongs to the adapter, and stands in the place of the model's own
while the adapter is active. Methods that train the model's own weights (`none` and the selective ones) keep no copy:
such an adapter is the only one of its model, and there is no base to go back to.

Invariants the tests check: a fresh adapter changes no output, to the bit; without it the outputs are the base's, to the
bit; taken off, the model has the modules, weights and names it had; merged equals unmerged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.base import LanguageModel
from trivium.peft import bottleneck, lora, scaled, selective, soft_prompts
from trivium.peft.held import (
    Adapter,
    Adapters,
    Entry,
    active_adapter,
    adapter_names,
    entry_of,
    held_by,
    parts_of,
    spare_of,
    tensors_of,
)
from trivium.peft.settings import (
    ADDED,
    MERGEABLE,
    AdapterSettings,
    IA3Settings,
    LowRankSettings,
    PeftSettings,
    VirtualSettings,
)
from trivium.peft.targets import bare_modules, bare_parameters, parameters_named
from trivium.peft.wrapped import Part, Wrapped
from trivium.tokenizer.bpe import Tokenizer

__all__ = [
    "Adapter",
    "active_adapter",
    "adapter_names",
    "adapter_of",
    "adapter_state",
    "add_adapter",
    "learning_rate_factors",
    "load_adapter_state",
    "merge_adapter",
    "refuse_unmergeable",
    "remove_adapter",
    "use_adapter",
    "without_adapter",
]

NAME = re.compile(r"[A-Za-z0-9_-]+")


def add_adapter(
    model: LanguageModel,
    settings: PeftSettings,
    *,
    seed: int = 0,
    name: str = "default",
    tokenizer: Tokenizer | None = None,
    trainable: bool = True,
) -> Adapter:
    """Put an adapter on a model and make it the active one; what it trains is all that is trainable then.

    New weights are drawn by generators seeded by (seed, parameter name). `tokenizer` is for prompts that begin as a
    text. With `trainable=False` nothing is trainable, and copies keep the type of the model: for an adapter to load
    into and use. UserError for names that are taken and for patterns that match nothing; the model is then as it was.
    """
    _refuse_name(model, name, settings)
    with without_adapter(model):  # copies and lengths are those of the base
        adapter = _added(model, settings, seed, name, tokenizer, trainable)
    use_adapter(model, name)
    return adapter


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Make an adapter the active one, None: none of them; what it trains is then all that is trainable."""
    _switch(model, name)
    if held_by(model) is None:
        return
    model.requires_grad_(False)
    if name is not None and entry_of(model, name).trainable:
        for parameter in adapter_of(model, name).parameters(model).values():
            parameter.requires_grad_(True)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The base alone, such as the reference of RLHF; what is trainable stays so.

    For passes without gradients: activations that are recomputed later would be recomputed with the adapter.
    """
    before = active_adapter(model)
    _switch(model, None)
    try:
        yield
    finally:
        _switch(model, before)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter off. After the last one the model is what it was: modules, weights, names, what is trainable.

    Where the model's own weights were trained there is nothing to take off: they stay as they are.
    """
    entry, held = entry_of(model, name), held_by(model)
    assert held is not None
    if held.active == name and entry.adapter.settings.method in ADDED:
        use_adapter(model, None)
    if isinstance(entry.adapter.settings, VirtualSettings):
        soft_prompts.remove(model, name)
    _take_out(model, name)
    del held.entries[name]
    if entry.copies:
        del held.spare[name]
    if not held.entries:
        del model.adapters
        for own, place in bare_parameters(model).items():
            getattr(*place).requires_grad_(own in held.learned)


@torch.no_grad()
def merge_adapter(model: nn.Module, name: str) -> None:
    """Work an adapter into the model's own weights, in fp64 arithmetic, and take it off.

    UserError for methods that cannot be, for packed weights, and beside other adapters, which were made for the base.
    """
    entry = entry_of(model, name)
    refuse_unmergeable(entry.adapter.settings.method)
    if others := [other for other in adapter_names(model) if other != name]:
        raise UserError(f"adapter {others[0]!r} is for the weights as they are: remove it before {name!r} is merged")
    parts, modules = parts_of(model, name), bare_modules(model)
    if packed := [module for module in parts if not isinstance(modules[module], nn.Linear)]:
        raise UserError(
            f"{packed[0]} is packed, and packing it anew would round away what was learned: merge into the "
            "full-precision base"
        )
    use_adapter(model, name)
    for module, part in parts.items():
        base = modules[module]
        assert isinstance(base, nn.Linear)
        weight, bias = part.merged((base.weight.double(), None if base.bias is None else base.bias.double()))
        base.weight.copy_(weight)
        if base.bias is not None and bias is not None:
            base.bias.copy_(bias)
    if entry.copies:
        for learned, own in zip(entry.adapter.own_parameters(model).values(), spare_of(model, name), strict=True):
            own.copy_(learned)
    remove_adapter(model, name)


def refuse_unmergeable(method: str) -> None:
    """UserError, which says why, for a method whose adapters cannot be worked into the weights."""
    if method in MERGEABLE:
        return
    if method not in ADDED:
        raise UserError(f"peft.method={method} trained the model's own weights, so nothing is left to merge: save it")
    nonlinear = method in bottleneck.PLACES
    why = "between its layers stands a nonlinearity" if nonlinear else "learned positions are no weights of a layer"
    raise UserError(f"{method} cannot be merged, for {why}: use it as an adapter ({', '.join(MERGEABLE)} can be)")


def adapter_of(model: nn.Module, name: str) -> Adapter:
    """The adapter of a name; UserError where there is none."""
    return entry_of(model, name).adapter


def adapter_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of an adapter: `<module>.<part's own name>`, and of what `also_train` names the parameters' names."""
    return tensors_of(model, name)


@torch.no_grad()
def load_adapter_state(model: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, named as by `adapter_state`, into an adapter; UserError unless all are there and fit."""
    adapter = adapter_of(model, name)
    places: dict[str, Tensor] = dict(adapter.own_parameters(model))
    if isinstance(adapter.settings, VirtualSettings):
        virtual = {key: value for key, value in tensors.items() if key not in places}
        tensors = {key: value for key, value in tensors.items() if key in places}
    else:
        virtual, places = {}, {**adapter.added_parameters(model), **places}
    if missing := places.keys() - tensors.keys():
        raise UserError(f"adapter {name!r}: {len(missing)} tensors are missing, such as {min(missing)}")
    if unknown := tensors.keys() - places.keys():
        raise UserError(f"adapter {name!r}: {len(unknown)} tensors have no place in it, such as {min(unknown)}")
    for key, value in tensors.items():
        if value.shape != places[key].shape:
            raise UserError(f"adapter {name!r}: {key} is {tuple(value.shape)}, not {tuple(places[key].shape)}")
    if isinstance(adapter.settings, VirtualSettings):
        soft_prompts.load(model, name, virtual)
    for key, value in tensors.items():
        places[key].copy_(value)


def learning_rate_factors(model: nn.Module) -> dict[str, float]:
    """How many times faster some parameters of the active adapter learn (LoRA+), by their names in the model now."""
    name = active_adapter(model)
    settings = None if name is None else adapter_of(model, name).settings
    if not isinstance(settings, LowRankSettings) or settings.learning_rate_ratio == 1.0:
        return {}
    names = [key for key, _ in model.named_parameters() if key.endswith(f".parts.{name}.lora_b")]
    return dict.fromkeys(names, settings.learning_rate_ratio)


def _added(
    model: LanguageModel, settings: PeftSettings, seed: int, name: str, tokenizer: Tokenizer | None, trainable: bool
) -> Adapter:
    """Put an adapter on a model of which none is active, and leave it so."""
    trained = parameters_named(model, settings.also_train, "also_train")
    if isinstance(settings, selective.OwnSettings):
        trained = list(dict.fromkeys([*selective.chosen(model, settings), *trained]))
    made = _new_parts(model, settings, seed)
    if isinstance(settings, LowRankSettings):
        _refuse_both(made, trained)
    if isinstance(settings, VirtualSettings):
        soft_prompts.install(model, settings, name, seed, tokenizer)
    held = held_by(model)
    if held is None:
        places = bare_parameters(model)
        held = Adapters(frozenset(own for own, place in places.items() if getattr(*place).requires_grad))
        model.adapters = held
    _put_in(model, made, name)
    copies = settings.method in ADDED and bool(trained)
    if copies:
        held.spare[name] = nn.ParameterList(_copies(model, trained, wide=trainable))
    adapter = Adapter(name, settings)
    held.entries[name] = Entry(adapter, tuple(trained), copies, trainable)
    return adapter


def _refuse_name(model: nn.Module, name: str, settings: PeftSettings) -> None:
    """UserError for names that cannot be, and for company that methods training the model's own weights cannot have."""
    names = adapter_names(model)
    if name in names:
        raise UserError(f"this model has an adapter {name!r} already: remove it, or choose another name")
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict, name) or name == "training":
        raise UserError(f"{name!r} cannot name an adapter: use letters, digits, - and _ (a few words are taken)")
    for method in [settings.method, *(adapter_of(model, other).settings.method for other in names)]:
        if names and method not in ADDED:
            raise UserError(f"peft.method={method} trains the model's own weights and can be its only adapter")


def _new_parts(model: LanguageModel, settings: PeftSettings, seed: int) -> dict[str, Part]:
    """What the method puts at modules, by their bare names."""
    modules = bare_modules(model)
    if isinstance(settings, LowRankSettings):
        return lora.parts(modules, model, settings, seed)
    if isinstance(settings, IA3Settings):
        return scaled.parts(modules, model, settings)
    if isinstance(settings, AdapterSettings):
        return bottleneck.parts(modules, settings, model.config.width, seed)
    return {}


def _refuse_both(made: Mapping[str, Part], trained: Sequence[str]) -> None:
    """UserError for layers that are trained in full and have a product beside them."""
    if both := [name for name in trained if name.rpartition(".")[0] in made]:
        raise UserError(f"also_train: {both[0]} belongs to a layer that is also one of the targets: choose one way")


def _put_in(model: nn.Module, made: Mapping[str, Part], name: str) -> None:
    """Put each part at its module, on the device of the module."""
    modules, places = bare_modules(model), _places(model)
    wrappers = {id(module.base): module for module in model.modules() if isinstance(module, Wrapped)}
    for bare, part in made.items():
        base = modules[bare]
        wrapped = wrappers.get(id(base))
        if wrapped is None:
            wrapped = Wrapped(base)
            parent, own = places[id(base)]
            parent._modules[own] = wrapped  # at the same place in the parent's order
        device = next((each.device for each in [*base.parameters(), *base.buffers()]), None)
        wrapped.parts[name] = part.to(device).train(base.training)


def _take_out(model: nn.Module, name: str) -> None:
    """Remove the parts of an adapter, and wrappers that have none left."""
    places = _places(model)
    for wrapped in [module for module in model.modules() if isinstance(module, Wrapped)]:
        if name in wrapped.parts:
            del wrapped.parts[name]
        if not len(wrapped.parts):
            parent, own = places[id(wrapped)]
            parent._modules[own] = wrapped.base


def _places(model: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    """Where each module is, by its id: its parent and its name there."""
    return {id(child): (parent, own) for parent in model.modules() for own, child in parent.named_children()}


def _copies(model: nn.Module, names: Sequence[str], *, wide: bool) -> list[nn.Parameter]:
    """Copies of the model's own parameters; `wide`: in fp32 at least."""
    places = bare_parameters(model)
    copies = []
    for name in names:
        own: Tensor = getattr(*places[name]).detach()
        copies.append(
            nn.Parameter(own.to(torch.promote_types(own.dtype, torch.float32) if wide else own.dtype, copy=True))
        )
    return copies


def _switch(model: nn.Module, name: str | None) -> None:
    """Make an adapter the active one, or none; what is trainable stays so."""
    held = held_by(model)
    if name is not None:
        entry_of(model, name)
    if held is None or held.active == name:
        return
    if held.active is not None:
        method = adapter_of(model, held.active).settings.method
        if method not in ADDED:
            raise UserError(f"peft.method={method} trains the model's own weights: load the model anew for its base")
    for changed in (held.active, name):
        if changed is not None and held.entries[changed].copies:
            _exchange(model, held.entries[changed])
    held.active = name
    for module in model.modules():
        if isinstance(module, Wrapped):
            module.active = name
    if any(isinstance(entry.adapter.settings, VirtualSettings) for entry in held.entries.values()):
        virtual = name is not None and isinstance(adapter_of(model, name).settings, VirtualSettings)
        soft_prompts.activate(model, name if virtual else None)


def _exchange(model: nn.Module, entry: Entry) -> None:
    """Exchange an adapter's copies with the model's own parameters; done twice, nothing has changed."""
    places, spare = bare_parameters(model), spare_of(model, entry.adapter.name)
    for number, name in enumerate(entry.trained):
        place, own = places[name]
        parameter = getattr(place, own)
        setattr(place, own, spare[number])
        spare[number] = parameter
    entry.in_place = not entry.in_place
