"""Which modules and parameters a pattern names.

A pattern is a whole dotted name or the end of one from a dot on, with the wildcards of a shell, of which `*` also
matches dots: `stack.blocks.0.*`, `attention.output`, `up`. Names are those of the bare model, also where adapters are
in place. A linear layer's last part alone means the layers of the blocks, where any has that name: `output` is
attention's, not the head's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from torch import nn

from trivium.errors import UserError, nearest
from trivium.models.base import LanguageModel
from trivium.models.transformer import Block, Stack
from trivium.peft.wrapped import Wrapped

T = TypeVar("T")

MOST_NAMES = 12
"""So many names are listed to someone whose pattern matches nothing."""
BESIDE = ((LanguageModel, "adapters"), (Stack, "prefix"), (Stack, "prompt"))
"""Where modules of adapters are that are no part of the bare model: in what, and under which name."""


def bare_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the model as it was before any adapter, by the names they had then; itself is ""."""
    found: dict[str, nn.Module] = {}

    def visit(module: nn.Module, name: str) -> None:
        module = module.base if isinstance(module, Wrapped) else module
        found[name] = module
        for own, child in module.named_children():
            if not any(isinstance(module, kind) and own == beside for kind, beside in BESIDE):
                visit(child, f"{name}.{own}" if name else own)

    visit(model, "")
    return found


def bare_parameters(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The parameters of the bare model: where each of them is, as (module, its name there)."""
    return {
        f"{name}.{own}" if name else own: (module, own)
        for name, module in bare_modules(model).items()
        for own, _ in module.named_parameters(recurse=False)
    }


def is_linear(module: nn.Module) -> bool:
    """Whether a module keeps the contract of linear layers, plain or packed."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern is the name, or its end from a dot on."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def linear_targets(model: nn.Module, patterns: Literal["auto"] | Sequence[str], key: str) -> list[str]:
    """The linear layers that the patterns name, in the model's order; `auto`: all of the blocks.

    UserError for a pattern that names none; `key` is the setting it stands in.
    """
    modules = bare_modules(model)
    linear = [name for name, module in modules.items() if is_linear(module)]
    blocks = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Block))
    inside = [name for name in linear if name.startswith(blocks)]
    if patterns == "auto":
        return inside
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in linear if matches(pattern, name)]
        if "." not in pattern:
            found = [name for name in found if name.startswith(blocks)] or found
        if not found:
            raise nothing_named(key, pattern, linear, "linear layer")
        chosen.update(found)
    return [name for name in linear if name in chosen]


def parameters_named(model: nn.Module, patterns: Sequence[str], key: str) -> list[str]:
    """The parameters that the patterns name, themselves or through a module they are in.

    UserError for a pattern that names none; `key` is the setting it stands in.
    """
    names = list(bare_parameters(model))
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if any(matches(pattern, each) for each in _with_owners(name))]
        if not found:
            known = list(dict.fromkeys(owner for name in names for owner in _with_owners(name)))
            raise nothing_named(key, pattern, known, "module with weights that can be trained")
        chosen.update(found)
    return [name for name in names if name in chosen]


def value_for(name: str, by_pattern: Mapping[str, T], otherwise: T) -> T:
    """What the last pattern that matches gives."""
    for pattern, value in by_pattern.items():
        if matches(pattern, name):
            otherwise = value
    return otherwise


def nothing_named(key: str, pattern: str, names: Iterable[str], what: str) -> UserError:
    """The error for a pattern that matches none of `names`."""
    names = list(names)
    last_parts = [part for part in dict.fromkeys(name.rpartition(".")[2] for name in names) if not part.isdigit()]
    near = nearest(pattern.rpartition(".")[2], last_parts)
    listed = ", ".join(last_parts[:MOST_NAMES]) + (", ..." if len(last_parts) > MOST_NAMES else "")
    meant = f"did you mean {near}? " if near and "." not in pattern else ""
    example = names[0] if names else "none"
    return UserError(f"{key}: no {what} is named {pattern!r}: {meant}there are {listed} (in full like {example})")


def _with_owners(name: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
