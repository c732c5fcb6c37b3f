"""Rows told apart by their keys, and made into one of six small records.

`{"text"}` -> Text; `{"prompt", "response"}` (or `completion`), `{"messages"}`, Alpaca and ShareGPT rows ->
Conversation; `{"prompt", "chosen", "rejected"}` (or a bare pair of whole conversations) -> Preference;
`{"text", "label"}`, `{"text", "pair", "label"}` and the names GLUE has for them -> Labelled; `{"source", "target"}`
(or `input`) -> Pair; `{"input_ids", "labels"}` -> Tokenized. Keys beyond these (an id, a topic) are let be; a key whose
value is null counts as absent, since table formats have no other way to leave one out. The invariant its test checks: a
row is either read or refused with its file, its number, the keys it has and the key it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trivium.data.conversations import (
    ROLES,
    Conversation,
    Message,
    liked_of,
    listed,
    system_of,
    text_at,
    tools_of,
    transcript,
    turns,
)
from trivium.data.row import Row
from trivium.errors import UserError, nearest

__all__ = ["ROLES", "Conversation", "Labelled", "Message", "Pair", "ParsedRow", "Preference", "Text", "Tokenized"]


@dataclass(frozen=True)
class Text:
    """A document."""

    text: str


@dataclass(frozen=True)
class Preference:
    """Two ways to go on from the same turns, one of them preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Labelled:
    """A text, or two, and the class."""

    text: str
    label: str | int | float | bool
    pair: str | None = None
    """The second text."""


@dataclass(frozen=True)
class Pair:
    """A text and what it is to become (a translation, a summary)."""

    source: str
    target: str


@dataclass(frozen=True)
class Tokenized:
    """Ids, and for each the id to learn in its place (not the next one), or -100."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


ParsedRow = Text | Conversation | Preference | Labelled | Pair | Tokenized


def parse_row(row: Row) -> ParsedRow:
    """The record a row holds; a UserError names file, row, keys and cure when it is none."""
    values = {key: value for key, value in row.values.items() if value is not None}
    for keys, parse in _KINDS:
        if all(key in values for key in keys):
            return parse(row, values)
    raise UserError(_no_kind(row, values))


def parse_rows(row: Row) -> Iterator[ParsedRow]:
    """The records of a row: one, but of a task with several `instances` (Self-Instruct) one for each."""
    instances = row.values.get("instances")
    if "instruction" not in row.values or not isinstance(instances, list):
        yield parse_row(row)
        return
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise UserError(f"{row.where}: instances[{number}] must be an object with 'input' and 'output'")
        yield parse_row(replace(row, values={"instruction": row.values["instruction"], **instance}))


def text_of(row: Row, key: str = "text") -> str:
    """The document in a row of any kind that has one (a null is an empty document)."""
    if key not in row.values:
        guess = nearest(key, map(str, row.values))
        near = f"did you mean {guess!r}? " if guess else ""
        cure = f"{near}in a recipe data.text_key names it; elsewhere call it 'text'"
        raise UserError(f"{row.where}: has no {key!r} (its keys: {listed(row.values)}); {cure}")
    value = row.values[key]
    return "" if value is None else text_at(row, key, value)


def _text(row: Row, values: Mapping[str, Any]) -> Text:
    return Text(text_at(row, "text", values["text"]))


def _labelled(first: str, second: str | None = None) -> Callable[[Row, Mapping[str, Any]], Labelled]:
    def parse(row: Row, values: Mapping[str, Any]) -> Labelled:
        label = values["label"]
        if not isinstance(label, str | int | float | bool):
            raise UserError(f"{row.where}: 'label' must be a text or a number, not {type(label).__name__}")
        pair = None if second is None else text_at(row, second, values[second])
        return Labelled(text_at(row, first, values[first]), label, pair)

    return parse


def _pair(first: str) -> Callable[[Row, Mapping[str, Any]], Pair]:
    def parse(row: Row, values: Mapping[str, Any]) -> Pair:
        return Pair(text_at(row, first, values[first]), text_at(row, "target", values["target"]))

    return parse


def _tokenized(row: Row, values: Mapping[str, Any]) -> Tokenized:
    sides = values["input_ids"], values["labels"]
    for key, side in zip(("input_ids", "labels"), sides, strict=True):
        if not isinstance(side, list) or not all(type(each) is int for each in side):
            raise UserError(f"{row.where}: {key!r} must be a list of whole numbers")
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{row.where}: {len(sides[0])} 'input_ids' and {len(sides[1])} 'labels': each id needs a label (-100: none)"
        )
    for place, (token, label) in enumerate(zip(*sides, strict=True)):
        if label not in (-100, token):
            raise UserError(
                f"{row.where}: label {place} is {label}, where the id itself ({token}) or -100 must stand: labels are "
                "shifted when they are learned, not in the file"
            )
    return Tokenized(tuple(sides[0]), tuple(sides[1]))


def _prompted(row: Row, values: Mapping[str, Any]) -> Conversation:
    key = "response" if "response" in values else "completion"
    asked, answered = turns(row, "prompt", values["prompt"], "user"), turns(row, key, values[key], "assistant")
    is_plain = isinstance(values["prompt"], str) and isinstance(values[key], str)
    return Conversation(
        system_of(row, values) + asked + answered, tools_of(row, values), is_plain=is_plain, liked=liked_of(values)
    )


def _alpaca(row: Row, values: Mapping[str, Any]) -> Conversation:
    """Instruction and input joined by a blank line; `history` is a list of [question, answer] before them."""
    earlier: list[Message] = []
    history = values.get("history", [])
    if not isinstance(history, list):
        raise UserError(f"{row.where}: 'history' must be a list of [question, answer]")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UserError(f"{row.where}: 'history' must hold [question, answer] lists of two texts")
        earlier.append(Message("user", text_at(row, "history", turn[0])))
        earlier.append(Message("assistant", text_at(row, "history", turn[1])))
    answer = Message("assistant", text_at(row, "output", values["output"]))
    messages = (*system_of(row, values), *earlier, _question(row, values), answer)
    return Conversation(messages, tools_of(row, values), liked=liked_of(values))


def _question(row: Row, values: Mapping[str, Any]) -> Message:
    asked = text_at(row, "instruction", values["instruction"])
    given = text_at(row, "input", values.get("input", ""))
    return Message("user", f"{asked}\n\n{given}" if given else asked)


def _chat(key: str) -> Callable[[Row, Mapping[str, Any]], Conversation]:
    def parse(row: Row, values: Mapping[str, Any]) -> Conversation:
        messages = turns(row, key, values[key], "user")
        if isinstance(values[key], str) or not messages:
            raise UserError(f"{row.where}: {key!r} must be a list of at least one message")
        return Conversation(system_of(row, values) + messages, tools_of(row, values), liked=liked_of(values))

    return parse


def _preference(row: Row, values: Mapping[str, Any]) -> Preference:
    sides = [values["chosen"], values["rejected"]]
    prompt_key = next((key for key in ("prompt", "messages", "conversations") if key in values), None)
    if prompt_key is not None or "instruction" in values:
        if prompt_key is None:
            asked: tuple[Message, ...] = (_question(row, values),)
        else:
            asked = turns(row, prompt_key, values[prompt_key], "user")
        prompt = system_of(row, values) + asked
        chosen, rejected = (
            turns(row, key, side, "assistant") for key, side in zip(("chosen", "rejected"), sides, strict=True)
        )
        if chosen[: len(prompt)] == rejected[: len(prompt)] == prompt and prompt:  # both repeat the prompt
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        prompt = ()
        chosen, rejected = transcript(row, "chosen", sides[0]), transcript(row, "rejected", sides[1])
        while len(chosen) > 1 and len(rejected) > 1 and chosen[0] == rejected[0]:
            prompt, chosen, rejected = (*prompt, chosen[0]), chosen[1:], rejected[1:]
    if not chosen or not rejected:
        raise UserError(f"{row.where}: 'chosen' and 'rejected' must each hold an answer")
    return Preference(prompt, chosen, rejected, tools_of(row, values))


# The first kind all of whose keys a row has is its kind, so the more specific come first.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[Row, Mapping[str, Any]], ParsedRow]], ...] = (
    (("chosen", "rejected"), _preference),
    (("messages",), _chat("messages")),
    (("conversations",), _chat("conversations")),
    (("prompt", "response"), _prompted),
    (("prompt", "completion"), _prompted),
    (("instruction", "output"), _alpaca),
    (("source", "target"), _pair("source")),
    (("input", "target"), _pair("input")),
    (("text", "pair", "label"), _labelled("text", "pair")),
    (("sentence1", "sentence2", "label"), _labelled("sentence1", "sentence2")),
    (("text", "label"), _labelled("text")),
    (("sentence", "label"), _labelled("sentence")),
    (("input_ids", "labels"), _tokenized),
    (("text",), _text),
)


def _no_kind(row: Row, values: Mapping[str, Any]) -> str:
    """The message for keys that make no kind: what is there, what is missing from the nearest kind, or all kinds."""
    found = f"{row.where}: the keys {listed(values)}"
    shared = max(_KINDS, key=lambda kind: sum(key in values for key in kind[0]))[0]
    if any(key in values for key in shared):
        missing = next(key for key in shared if key not in values)
        guess = nearest(missing, (key for key in values if key not in shared))
        hint = f"; did you mean {missing!r} by {guess!r}?" if guess else ""
        return f"{found} lack {missing!r}, which goes with {listed(k for k in shared if k != missing)}{hint}"
    known = {key for keys, _ in _KINDS for key in keys}
    guesses = ((key, nearest(str(key), sorted(known))) for key in values)
    hint = next((f"; did you mean {guess!r} by {key!r}?" for key, guess in guesses if guess), "")
    return f"{found} make no known kind of row ({'; '.join(' + '.join(keys) for keys, _ in _KINDS)}){hint}"
