"""Conversations in rows: messages under all the names that files give them, made into one kind of record.

Messages are {"role", "content"} (OpenAI, TRL) or {"from", "value"} (ShareGPT). A message says whether it is learned by
`train` (true or false) or by `weight` (1 or 0); further keys, such as `name` and `tool_calls`, are kept for the chat
template. A ShareGPT `function_call` becomes a message of the assistant with `tool_calls`, an `observation` one of the
tool; `tools` may be a list or its JSON. Invariant its test checks: every set of ../shared/data is read whole, and put
together again its messages say what the file says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trivium.data.row import Row
from trivium.errors import UserError, nearest

ROLES = ("system", "user", "assistant", "tool")

ROLE_NAMES = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
NAMES_OF_CALLS = ("function_call",)

# The turns of the HH-RLHF transcripts (Bai et al., 2022).
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_READ_KEYS = ("role", "content", "from", "value", "train", "weight")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str
    train: bool | None = None
    """Whether it is learned; None: as the run says."""
    further: Mapping[str, Any] = field(default_factory=dict)
    """Other keys, for the chat template: `name`, `tool_calls`, ..."""


@dataclass(frozen=True)
class Conversation:
    """Turns in order; what every instruction-like row becomes."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the assistant may call, as JSON schemas."""
    is_plain: bool = field(default=False, compare=False)
    """True for a prompt and a response that are plain texts: without a chat template they follow on one another."""
    liked: bool | None = None
    """How people judged the last answer, where the row says so (rows for KTO)."""

    @property
    def key(self) -> str:
        """The text by whose hash it is held out: equal conversations have equal keys."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


def system_of(row: Row, values: Mapping[str, Any]) -> tuple[Message, ...]:
    """The row's `system` as a message; nothing where it has none."""
    said = text_at(row, "system", values.get("system", ""))
    return (Message("system", said),) if said else ()


def tools_of(row: Row, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The row's `tools`: a list of objects, or the JSON of one."""
    tools = values.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError:
            raise UserError(
                f"{row.where}: 'tools' is a text that is no JSON; give a list of objects, or its JSON"
            ) from None
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{row.where}: 'tools' must be a list of objects (JSON schemas of functions)")
    return tuple(tools)


def liked_of(values: Mapping[str, Any]) -> bool | None:
    """The row's `label`, where it is true or false."""
    label = values.get("label")
    return label if isinstance(label, bool) else None


def turns(row: Row, key: str, value: Any, role: str) -> tuple[Message, ...]:
    """A text as one turn of `role`; a message or a list of messages as they say themselves."""
    if isinstance(value, str):
        return (Message(role, value),)
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise UserError(f"{row.where}: {key!r} must be a text or a list of messages, not {type(value).__name__}")
    return tuple(_message(row, f"{key}[{index}]", message) for index, message in enumerate(messages))


def transcript(row: Row, key: str, value: Any) -> tuple[Message, ...]:
    """A whole conversation: messages, or text with `Human:` and `Assistant:` turns."""
    if not isinstance(value, str):
        return turns(row, key, value, "assistant")
    start, *said = _TRANSCRIPT_TURN.split(value if value.startswith("\n\n") else "\n\n" + value)
    if start or not said:
        raise UserError(
            f"{row.where}: there is no 'prompt', so {key!r} must be a whole conversation: messages, or text in "
            "which each turn begins with a blank line and 'Human:' or 'Assistant:'"
        )
    return tuple(
        Message("user" if who == "Human" else "assistant", words)
        for who, words in zip(said[::2], said[1::2], strict=True)
    )


def text_at(row: Row, key: str, value: Any) -> str:
    """`value` when it is a text. UserError names the row and the key."""
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {key!r} must be a text, not {type(value).__name__}")
    return value


def listed(keys: Any) -> str:
    """Keys for a message to people."""
    return ", ".join(repr(key) for key in keys) or "(none)"


def _message(row: Row, key: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise UserError(f"{row.where}: {key} must be an object with 'role' and 'content'")
    further = {name: value for name, value in message.items() if name not in _READ_KEYS and value is not None}
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in message and (content_key in message or further.get("tool_calls")):
            name, content = message[role_key], message.get(content_key)
            if not isinstance(name, str) or name not in ROLE_NAMES:
                guess = nearest(str(name), ROLE_NAMES)
                hint = f"did you mean {guess!r}? " if guess else ""
                raise UserError(f"{row.where}: {key} has the role {name!r}; {hint}known: {', '.join(ROLE_NAMES)}")
            said = (
                "" if content is None and further.get("tool_calls") else _content(row, f"{key}.{content_key}", content)
            )
            if name in NAMES_OF_CALLS and (calls := _calls(said)):
                said, further = "", {**further, "tool_calls": calls}
            return Message(ROLE_NAMES[name], said, _train(row, key, message), further)
    raise UserError(
        f"{row.where}: {key} needs 'role' and 'content' (or 'from' and 'value'); its keys: {listed(message)}"
    )


def _content(row: Row, key: str, content: Any) -> str:
    """A text, or OpenAI's list of parts when all of them are texts."""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        odd = next((part for part in content if part.get("type") != "text"), None)
        if odd is not None:
            raise UserError(f"{row.where}: {key!r} holds a part of type {odd.get('type')!r}; only texts can be learned")
        return "".join(text_at(row, f"{key}.text", part.get("text")) for part in content)
    return text_at(row, key, content)


def _calls(said: str) -> list[dict[str, Any]]:
    """The calls in a ShareGPT `function_call`; empty when it is not the JSON of calls: then it stays a text."""
    try:
        found = json.loads(said)
    except ValueError:
        return []
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call and "arguments" in call for call in calls):
        return []
    return [{"type": "function", "function": {**call}} for call in calls]


def _train(row: Row, key: str, message: Mapping[str, Any]) -> bool | None:
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise UserError(f"{row.where}: {key}.train must be true or false, not {train!r}")
    if weight is None:
        return train
    if weight not in (0, 1):
        raise UserError(f"{row.where}: {key}.weight must be 0 or 1, not {weight!r}")
    if train is not None and train != bool(weight):
        raise UserError(f"{row.where}: {key} has train={train} and weight={weight}, which contradict: remove one")
    return bool(weight)
