"""Chat templates are programs by strangers: run them without harm.

Templates come inside model directories, in Jinja. They run in Jinja's immutable sandbox (no Python internals, no
changes to what they are given), and what they may do costs fuel: every loop turn, call, joined or repeated text and
every character of output is paid for, so that a template ends within `FUEL` characters' worth of work and about
`SECONDS`. Filters and methods that can make much from little (`center`, `indent` by a million, "%999999999d") are left
out or bounded.

Bounded: source, output, and all text made on the way; loop turns; `range`; recursion; whole-number size.
Not bounded, as Python cannot be stopped inside one of its own operations: the time of a single comparison, search or
sort of large or deeply shared values. Whoever serves templates of strangers to strangers needs a process with a limit.

Where Hugging Face's environment offers something, this one offers the same: `trim_blocks`, `lstrip_blocks`, `break` and
`continue`, `{% generation %}` (its body is written as it stands), `raise_exception`, `strftime_now`, `tojson`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar, cast

from jinja2 import Environment, TemplateError, nodes, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import do_indent, do_round, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from trivium.errors import UserError

LONGEST_SOURCE = 1 << 17
"""Characters of a template; the longest published ones have about 50,000."""
LONGEST_OUTPUT = 10_000_000
"""Characters of a rendered conversation."""
FUEL = 100_000_000
"""Characters made on the way, all together."""
SECONDS = 10.0
_TURN = 128  # fuel of one loop turn or call
_ITEM = 16  # fuel of one item of a list that is made
_WIDEST = 9_999  # padding, in characters
_DEEPEST = 64  # indentation, in characters
_LARGEST_BITS = 4096  # whole numbers


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _words(
    "abs capitalize count d default dictsort e escape first float groupby indent int items join last length list lower "
    "map max min reject rejectattr replace reverse round safe select selectattr sort string title trim truncate "
    "unique upper wordcount"
)
_METHODS: dict[type, frozenset[str]] = {
    str: _words(
        "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
        "isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix "
        "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper "
        "zfill"
    ),
    Mapping: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count index"),
    range: _words("count index"),
    bytes: _words(""),
    int: _words(""),
    float: _words(""),
}


class _Meter:
    """The fuel of one rendering."""

    def __init__(self) -> None:
        self._left = FUEL
        self._deadline = time.monotonic() + SECONDS

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise SecurityError(f"it makes more than {FUEL:,} characters on the way")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes more than {SECONDS:g} seconds")

    def spend_written(self, value: Any, indent: int = 0, depth: int = 1) -> int:
        """Pay for `value` as text before it is written (a list may hold one long text a million times).

        Returns the price: about the length of the text, with `indent` more for each level of an item.
        """
        price = _ITEM + indent * depth
        if isinstance(value, str):
            price += len(value)
        self.spend(price)
        if isinstance(value, Mapping):
            for key, item in value.items():
                price += self.spend_written(key) + self.spend_written(item, indent, depth + 1)
        elif isinstance(value, list | tuple | set | frozenset):
            for item in value:
                price += self.spend_written(item, indent, depth + 1)
        return price

    def spend_made(self, value: Any) -> Any:
        """Pay for a value that an operation has made; returns it."""
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.spend(_ITEM * len(value))
        return value


T = TypeVar("T")
_METER: ContextVar[_Meter] = ContextVar("_METER")


def run_metered(work: Callable[[], T], what: str) -> T:
    """Run compiling or rendering with fresh fuel; whatever goes wrong inside a template becomes a UserError."""
    token = _METER.set(_Meter())
    try:
        return work()
    except UserError:
        raise
    except Exception as error:  # a template can raise anything that Python can
        detail = str(error).strip() or type(error).__name__
        line = getattr(error, "lineno", None)
        place = f" (line {line})" if isinstance(line, int) else ""
        raise UserError(f"the chat template cannot {what}{place}: {detail}") from error
    finally:
        _METER.reset(token)


def _written(value: Any) -> str:
    """`str(value)`, paid for before it is made."""
    _METER.get().spend_written(value)
    return str(value)


def _join_parts(parts: Iterable[Any]) -> str:
    texts = [part if isinstance(part, str) else _written(part) for part in parts]
    _METER.get().spend(sum(map(len, texts)))
    return "".join(texts)


def _output(parts: Iterable[str]) -> str:
    """Joins what a template (or a macro, or a `set` block) writes, piece by piece."""
    meter = _METER.get()
    kept: list[str] = []
    total = 0
    for part in parts:
        total += len(part)
        meter.spend(len(part) + 1)
        if total > LONGEST_OUTPUT:
            raise SecurityError(f"it writes more than {LONGEST_OUTPUT:,} characters")
        kept.append(part)
    return "".join(kept)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """The values of a loop, each turn paid for."""
    meter = _METER.get()
    for value in values:
        meter.spend(_TURN)
        yield value


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(_counted(value))
    if attribute is not None:
        items = list(map(make_attrgetter(environment, attribute), items))
    texts = list(map(_written, items))
    _METER.get().spend(sum(map(len, texts)) + len(d) * len(texts))
    return str(d).join(texts)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    _METER.get().spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    step = _step(width)
    _METER.get().spend(len(text) + len(step) * (text.count("\n") + 1))
    return do_indent(text, step, first, blank)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not Jinja's own, which writes <, > and & as escapes.
    step = None if indent is None else _step(indent)
    _METER.get().spend_written(value, len(step or ""))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=step, separators=separators, sort_keys=sort_keys)


def _step(indent: int | str) -> str:
    """One level of indentation."""
    if (len(indent) if isinstance(indent, str) else indent) > _DEEPEST:
        raise SecurityError(f"an indentation is wider than {_DEEPEST} characters")
    return indent if isinstance(indent, str) else " " * indent


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    _check_width(precision)
    return do_round(value, precision, method)


def _check_width(width: Any) -> None:
    if isinstance(width, int) and width > _WIDEST:
        raise SecurityError(f"a width of {width:,} is more than {_WIDEST:,}")


def _check_format(text: str, arguments: Iterable[Any]) -> None:
    """Refuse formats that make much from little: wide fields, widths that are arguments, long values many times."""
    if re.search(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*", text):
        raise SecurityError("a text format asks for a field that is too wide")
    meter = _METER.get()
    longest_field = _WIDEST + sum(map(meter.spend_written, arguments))
    meter.spend(len(text) + longest_field * (text.count("{") + text.count("%")))


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:1000])


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is paid for (`wraps` keeps Jinja's mark of what to pass to it)."""

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        return _METER.get().spend_made(function(*args, **kwargs))

    return measured


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what the model says; here its body is simply written."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way to declare it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metered(NodeTransformer):
    """Puts the meter where Jinja offers no hook: loops, `~`, and slices."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._filter(cast(nodes.Expr, node.iter), "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), "_join_parts")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    @staticmethod
    def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The Jinja environment of chat templates. Compile and render inside `run_metered` only."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_output)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, LoopControlExtension],
            finalize=_written,
        )
        offered = {name: self.filters[name] for name in _FILTERS}
        offered |= {"join": _join, "replace": _replace, "string": _written}
        offered |= {"indent": _indent, "round": _round, "tojson": _tojson}
        self.filters = {name: _measured(function) for name, function in offered.items()}
        self.filters |= {
            "_counted": _counted,
            "_join_parts": _join_parts,
            "_made": lambda v: _METER.get().spend_made(v),
        }
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def metered(self, source: str) -> nodes.Template:
        """The syntax tree of a template, with the meter put in."""
        tree = _Metered().visit(self.parse(source))
        tree.set_environment(self)
        return tree  # type: ignore[no-any-return]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of plain values by allow-list; of Jinja's own objects by Jinja's rules."""
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+ * ** %`, with the size of the result checked first."""
        meter = _METER.get()
        if isinstance(left, int) and isinstance(right, int):
            factor = max(right, 0) if operator == "**" else 1
            if left.bit_length() * factor + (0 if operator == "**" else right.bit_length()) > _LARGEST_BITS:
                raise SecurityError("a whole number has more than 1,200 digits")
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                    meter.spend((1 if isinstance(sequence, str) else _ITEM) * len(sequence) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return meter.spend_made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a global, or a method; what it makes is paid for."""
        meter = _METER.get()
        meter.spend(_TURN)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return _replace(owner, *args, **kwargs)
            if name == "join":
                return _join(__self, args[0], owner)
            if name in ("center", "ljust", "rjust", "zfill"):
                _check_width(args[0] if args else None)
        return meter.spend_made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with its fields checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(text, (*args, *kwargs.values()))
            return str(wrapped(*args, **kwargs))

        return checked
