"""Rows told apart by their keys, and made into one of five small records.

`{"text"}` -> Text; `{"prompt", "response"}` (or `completion`), `{"messages"}`, Alpaca and ShareGPT rows ->
Conversation; `{"prompt", "chosen", "rejected"}` (or a bare pair of whole conversations) -> Preference;
`{"text", "label"}` -> Labelled; `{"source", "target"}` -> Pair. Keys beyond these (an id, a topic) are let be; a key
whose value is null counts as absent, since table formats have no other way to leave one out. The invariant its test
checks: a row is either read or refused with its file, its number, the keys it has and the key it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.data.row import Row
from trivium.errors import UserError, nearest

ROLES = ("system", "user", "assistant", "tool")

_ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}

# The turns of the HH-RLHF transcripts (Bai et al., 2022).
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str


@dataclass(frozen=True)
class Text:
    """A document."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order; what every instruction-like row becomes."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Preference:
    """Two ways to go on from the same turns, one of them preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    text: str
    label: str | int | float | bool


@dataclass(frozen=True)
class Pair:
    """A text and what it is to become (a translation, a summary)."""

    source: str
    target: str


ParsedRow = Text | Conversation | Preference | Labelled | Pair


def parse_row(row: Row) -> ParsedRow:
    """The record a row holds; a UserError names file, row, keys and cure when it is none."""
    values = {key: value for key, value in row.values.items() if value is not None}
    for keys, parse in _KINDS:
        if all(key in values for key in keys):
            return parse(row, values)
    raise UserError(_no_kind(row, values))


def text_of(row: Row, key: str = "text") -> str:
    """The document in a row of any kind that has one (a null is an empty document)."""
    if key not in row.values:
        guess = nearest(key, map(str, row.values))
        near = f"did you mean {guess!r}? " if guess else ""
        cure = f"{near}in a recipe data.text_key names it; elsewhere call it 'text'"
        raise UserError(f"{row.where}: has no {key!r} (its keys: {_listed(row.values)}); {cure}")
    value = row.values[key]
    return "" if value is None else _string(row, key, value)


def _text(row: Row, values: Mapping[str, Any]) -> Text:
    return Text(_string(row, "text", values["text"]))


def _labelled(row: Row, values: Mapping[str, Any]) -> Labelled:
    label = values["label"]
    if not isinstance(label, str | int | float | bool):
        raise UserError(f"{row.where}: 'label' must be a text or a number, not {type(label).__name__}")
    return Labelled(_string(row, "text", values["text"]), label)


def _pair(row: Row, values: Mapping[str, Any]) -> Pair:
    return Pair(_string(row, "source", values["source"]), _string(row, "target", values["target"]))


def _prompted(row: Row, values: Mapping[str, Any]) -> Conversation:
    key = "response" if "response" in values else "completion"
    asked = _turns(row, "prompt", values["prompt"], "user")
    return Conversation(_system(row, values) + asked + _turns(row, key, values[key], "assistant"))


def _alpaca(row: Row, values: Mapping[str, Any]) -> Conversation:
    """Instruction and input joined by a blank line; `history` is a list of [question, answer] before them."""
    earlier: list[Message] = []
    history = values.get("history", [])
    if not isinstance(history, list):
        raise UserError(f"{row.where}: 'history' must be a list of [question, answer]")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UserError(f"{row.where}: 'history' must hold [question, answer] lists of two texts")
        earlier.append(Message("user", _string(row, "history", turn[0])))
        earlier.append(Message("assistant", _string(row, "history", turn[1])))
    asked = _string(row, "instruction", values["instruction"])
    given = _string(row, "input", values.get("input", ""))
    question = Message("user", f"{asked}\n\n{given}" if given else asked)
    answer = Message("assistant", _string(row, "output", values["output"]))
    return Conversation((*_system(row, values), *earlier, question, answer))


def _chat(key: str) -> Callable[[Row, Mapping[str, Any]], Conversation]:
    def parse(row: Row, values: Mapping[str, Any]) -> Conversation:
        messages = _turns(row, key, values[key], "user")
        if isinstance(values[key], str) or not messages:
            raise UserError(f"{row.where}: {key!r} must be a list of at least one message")
        return Conversation(_system(row, values) + messages)

    return parse


def _preference(row: Row, values: Mapping[str, Any]) -> Preference:
    sides = [values["chosen"], values["rejected"]]
    prompt_key = next((key for key in ("prompt", "messages", "conversations") if key in values), None)
    if prompt_key is not None:
        prompt = _system(row, values) + _turns(row, prompt_key, values[prompt_key], "user")
        chosen, rejected = (
            _turns(row, key, side, "assistant") for key, side in zip(("chosen", "rejected"), sides, strict=True)
        )
        if chosen[: len(prompt)] == rejected[: len(prompt)] == prompt and prompt:  # both repeat the prompt
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        prompt = ()
        chosen, rejected = _transcript(row, "chosen", sides[0]), _transcript(row, "rejected", sides[1])
        while len(chosen) > 1 and len(rejected) > 1 and chosen[0] == rejected[0]:
            prompt, chosen, rejected = (*prompt, chosen[0]), chosen[1:], rejected[1:]
    if not chosen or not rejected:
        raise UserError(f"{row.where}: 'chosen' and 'rejected' must each hold an answer")
    return Preference(prompt, chosen, rejected)


def _transcript(row: Row, key: str, value: Any) -> tuple[Message, ...]:
    """A whole conversation: messages, or text with `Human:` and `Assistant:` turns."""
    if not isinstance(value, str):
        return _turns(row, key, value, "assistant")
    start, *turns = _TRANSCRIPT_TURN.split(value if value.startswith("\n\n") else "\n\n" + value)
    if start or not turns:
        raise UserError(
            f"{row.where}: there is no 'prompt', so {key!r} must be a whole conversation: messages, or text in "
            "which each turn begins with a blank line and 'Human:' or 'Assistant:'"
        )
    return tuple(
        Message("user" if who == "Human" else "assistant", said)
        for who, said in zip(turns[::2], turns[1::2], strict=True)
    )


def _turns(row: Row, key: str, value: Any, role: str) -> tuple[Message, ...]:
    """A text as one turn of `role`; a message or a list of messages as they say themselves."""
    if isinstance(value, str):
        return (Message(role, value),)
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise UserError(f"{row.where}: {key!r} must be a text or a list of messages, not {type(value).__name__}")
    return tuple(_message(row, f"{key}[{index}]", message) for index, message in enumerate(messages))


def _message(row: Row, key: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise UserError(f"{row.where}: {key} must be an object with 'role' and 'content'")
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in message and content_key in message:
            name = message[role_key]
            if not isinstance(name, str) or name not in _ROLE_NAMES:
                guess = nearest(str(name), _ROLE_NAMES)
                hint = f"did you mean {guess!r}? " if guess else ""
                raise UserError(f"{row.where}: {key} has the role {name!r}; {hint}known: {', '.join(_ROLE_NAMES)}")
            return Message(_ROLE_NAMES[name], _string(row, f"{key}.{content_key}", message[content_key]))
    raise UserError(
        f"{row.where}: {key} needs 'role' and 'content' (or 'from' and 'value'); its keys: {_listed(message)}"
    )


def _system(row: Row, values: Mapping[str, Any]) -> tuple[Message, ...]:
    text = _string(row, "system", values.get("system", ""))
    return (Message("system", text),) if text else ()


def _string(row: Row, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {key!r} must be a text, not {type(value).__name__}")
    return value


# The first kind all of whose keys a row has is its kind, so the more specific come first.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[Row, Mapping[str, Any]], ParsedRow]], ...] = (
    (("chosen", "rejected"), _preference),
    (("messages",), _chat("messages")),
    (("conversations",), _chat("conversations")),
    (("prompt", "response"), _prompted),
    (("prompt", "completion"), _prompted),
    (("instruction", "output"), _alpaca),
    (("source", "target"), _pair),
    (("text", "label"), _labelled),
    (("text",), _text),
)


def _no_kind(row: Row, values: Mapping[str, Any]) -> str:
    """The message for keys that make no kind: what is there, what is missing from the nearest kind, or all kinds."""
    found = f"{row.where}: the keys {_listed(values)}"
    shared = max(_KINDS, key=lambda kind: sum(key in values for key in kind[0]))[0]
    if any(key in values for key in shared):
        missing = next(key for key in shared if key not in values)
        guess = nearest(missing, (key for key in values if key not in shared))
        hint = f"; did you mean {missing!r} by {guess!r}?" if guess else ""
        return f"{found} lack {missing!r}, which goes with {_listed(k for k in shared if k != missing)}{hint}"
    known = {key for keys, _ in _KINDS for key in keys}
    guesses = ((key, nearest(str(key), sorted(known))) for key in values)
    hint = next((f"; did you mean {guess!r} by {key!r}?" for key, guess in guesses if guess), "")
    return f"{found} make no known kind of row ({'; '.join(' + '.join(keys) for keys, _ in _KINDS)}){hint}"


def _listed(keys: Any) -> str:
    return ", ".join(repr(key) for key in keys) or "(none)"
