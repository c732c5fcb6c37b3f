"""Messages of a conversation, checked: who speaks, what is said, and which answers are learned.

Errors count messages from 1 and say nothing of rows: whoever reads rows adds where the row is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trivium.errors import UserError, nearest

ROLES = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, Any]
"""{"role": one of ROLES, "content": text, further keys for the template}, and "train" on answers."""


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Checked messages without `train` and without keys that hold None, made of plain JSON values only."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list, not {type(messages).__name__}")
    if not messages:
        raise UserError("messages is empty: a conversation needs at least one message")
    return [_plain_message(message, number) for number, message in enumerate(messages, 1)]


def _plain_message(message: Message, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f'message {number} must be {{"role", "content"}}, not {type(message).__name__}')
    role = message.get("role")
    if role not in ROLES:
        guess = nearest(role, ROLES) if isinstance(role, str) else None
        cure = f"did you mean {guess!r}?" if guess else f"roles are {', '.join(ROLES)}"
        raise UserError(f"message {number} has role {role!r}: {cure}")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        found = "no content" if content is None else f"content of type {type(content).__name__}"
        raise UserError(f"message {number} ({role}) has {found}: content must be text")
    kept = {key: value for key, value in message.items() if key != "train" and value is not None}
    return {str(key): _plain_value(value, f"message {number}: {key}") for key, value in kept.items()}


def _plain_value(value: Any, where: str) -> Any:
    """A copy made of JSON's own types: a template is never given an object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item, where) for item in value]
    raise UserError(f"{where} holds a {type(value).__name__}: messages are made of text, numbers, lists and objects")


def plain_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Any]:
    """Checked tool descriptions, made of plain JSON values only."""
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(t, Mapping) for t in tools)):
        raise UserError("tools must be a list of objects (JSON schemas of functions)")
    return [_plain_value(tool, f"tool {number}") for number, tool in enumerate(tools or (), 1)]


def learned_messages(messages: Sequence[Message], plain: Sequence[Message], train: str) -> list[bool]:
    """For each message, whether it is learned: answers ("all" or the "last"), unless its own "train" says otherwise."""
    if train not in ("all", "last"):
        raise UserError(f"train={train!r} must be 'all' or 'last'")
    answers = [number for number, message in enumerate(plain) if message["role"] == "assistant"]
    chosen = set(answers if train == "all" else answers[-1:])
    flags = []
    for number, message in enumerate(messages):
        flag = message.get("train")
        if flag is not None and not isinstance(flag, bool):
            raise UserError(f'message {number + 1}: "train" must be true or false, not {flag!r}')
        if flag and number not in answers:
            raise UserError(f'message {number + 1}: "train" is true, but only messages of the assistant are learned')
        flags.append(number in chosen if flag is None else flag)
    return flags
