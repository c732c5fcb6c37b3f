"""YAML in, plain values with line numbers out; and plain values back to YAML text.

Read by the rules of YAML 1.2's core schema, because 1.1 surprises: there `no` and `off` are booleans, `1e-4`
is a string, `012` is ten and `1:30` is ninety. Kept from 1.1: `10_000`. Refused: tags, aliases (a small file
could grow without bound), a key written twice, more than one document, more than `MAX_BYTES`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from trivium.errors import UserError

MAX_BYTES = 1 << 18

Place = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
         |[-+]?[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)
         |[-+]?[0-9][0-9_]*\.
         |[-+]?\.(?:inf|Inf|INF)
         |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_KINDS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _Loader(yaml.SafeLoader):
    """Composes nodes and constructs scalars; never constructs anything but str, int, float, bool and None."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (the library's own protocol: filled below, not shared)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node; an alias is refused before it can be followed."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read: write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


for _tag, _regex, _first in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regex, _first)


@dataclass
class Parsed:
    """What a text holds."""

    value: Any
    """dict, list, str, int, float, bool or None, nested."""
    lines: dict[Place, int] = field(default_factory=dict)
    """The line (from 1) of every key and list item."""
    mistakes: list[tuple[int, str, str]] = field(default_factory=list)
    """(line, dotted key, what is wrong): duplicate keys, unreadable values. `value` is then incomplete."""


def dotted(place: Place) -> str:
    """`("data", "sources", 0, "weight")` as `data.sources.0.weight`."""
    return ".".join(str(part) for part in place)


def parse(text: str) -> Parsed:
    """Read one YAML document. Raises `UserError` (`line N: ...` where known) when it is not YAML at all."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES} bytes; this is not a recipe")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        parsed = Parsed(None)
        parsed.value = None if node is None else _plain(loader, node, (), parsed)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{line}not valid YAML: {_cure(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError("nested too deeply to be a recipe") from None
    return parsed


def _cure(error: yaml.MarkedYAMLError) -> str:
    """The parser's complaint in one line, with the cure where it is one of the usual ones."""
    problem = " ".join(part for part in (error.problem, error.context) if part)
    if "'\\t'" in problem:
        return "a tab indents this line; use spaces"
    if "mapping values are not allowed" in problem:
        return f"{problem}; put quotes around a text that holds ': '"
    return " ".join(problem.split())


def _plain(loader: _Loader, node: yaml.Node, place: Place, parsed: Parsed) -> Any:
    """The value of a node, its keys' lines noted in `parsed`."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and node.tag in _KINDS:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                parsed.mistakes.append((key_line, dotted(place), "a key must be a plain word"))
                continue
            here = (*place, key_node.value)
            if key_node.value in values:
                first = parsed.lines[here]
                parsed.mistakes.append((key_line, dotted(here), f"written twice (first on line {first})"))
                continue
            parsed.lines[here] = key_line
            values[key_node.value] = _plain(loader, value_node, here, parsed)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag in _KINDS:
        items = []
        for index, item in enumerate(node.value):
            parsed.lines[(*place, index)] = item.start_mark.line + 1
            items.append(_plain(loader, item, (*place, index), parsed))
        return items
    try:
        return loader.construct_object(node)
    except yaml.constructor.ConstructorError:
        parsed.mistakes.append((line, dotted(place), f"the tag {node.tag!r} is not read; write a plain value"))
    except ValueError:
        parsed.mistakes.append((line, dotted(place), "this number cannot be read"))
    return None


class _Dumper(yaml.SafeDumper):
    """Writes plain values so that `parse`, and a YAML 1.1 reader too, reads them back equal."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Text with line breaks or unprintable characters goes on one line in double quotes."""
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    """Python's shortest exact decimal, with the point that YAML 1.1 needs."""
    if not math.isfinite(value):
        return dumper.represent_float(value)
    digits = repr(value)
    if "e" in digits and "." not in digits:
        digits = digits.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", digits)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def dump_value(value: Any) -> str:
    """A plain value as YAML on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9
    )
    return text.removesuffix("...\n").rstrip("\n")  # "...": how the library ends a lone scalar
