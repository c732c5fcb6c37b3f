"""What stands around a text in a model's input: `[CLS] a [SEP] b [SEP]`, `<s> a </s>`, `a </s>`.

The rule is the post-processor of tokenizer.json, read here as data, since the library applies it to encodings only and
not to ids.

Invariant: `wrap` gives the ids and the types (0 for the first text, 1 for the second) that the library gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer as Core
from tokenizers import processors

from trivium.errors import UserError


@dataclass(frozen=True)
class Slot:
    """One place of a wrapped input: the first text, the second, or fixed ids."""

    content: Literal["A", "B"] | tuple[int, ...]
    type: int


@dataclass(frozen=True)
class Wrapping:
    """How one text and how two texts are wrapped."""

    single: tuple[Slot, ...] = (Slot("A", 0),)
    pair: tuple[Slot, ...] = (Slot("A", 0), Slot("B", 1))

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """(ids, types), both of the length of the whole."""
        texts: dict[str, Sequence[int]] = {"A": ids, "B": pair or ()}
        wrapped: list[int] = []
        types: list[int] = []
        for slot in self.single if pair is None else self.pair:
            content = texts[slot.content] if isinstance(slot.content, str) else slot.content
            wrapped += content
            types += [slot.type] * len(content)
        return wrapped, types

    def beginning_with(self, token_id: int) -> Wrapping:
        """The same with `token_id` before each text, unless it begins with it already."""
        first = self.single[0].content if self.single else ()
        if isinstance(first, tuple) and first[:1] == (token_id,):
            return self
        second = next((place for place, slot in enumerate(self.pair) if slot.content == "B"), len(self.pair))
        begun = (*self.pair[:second], Slot((token_id,), self.pair[-1].type if self.pair else 0), *self.pair[second:])
        return Wrapping((Slot((token_id,), 0), *self.single), (Slot((token_id,), 0), *begun))


def read_wrapping(core: Core) -> Wrapping:
    """The wrapping of the post-processor of `core`. UserError for kinds of post-processors that are unknown."""
    if core.post_processor is None:
        return Wrapping()
    outer = json.loads(core.post_processor.__getstate__())
    parts = outer["processors"] if outer["type"] == "Sequence" else [outer]
    wrapping = [part for part in parts if part["type"] != "ByteLevel"]  # which only moves offsets
    if not wrapping:
        return Wrapping()
    if len(wrapping) > 1:
        raise UserError("the tokenizer wraps its texts twice (two post-processors), which is not supported")
    return _read(wrapping[0])


def set_wrapping(core: Core, single: Sequence[str], pair: Sequence[str]) -> None:
    """Let `core` wrap its texts so: `$A`, `$B` and tokens, each with `:1` behind it when its type is 1.

    Raises UserError when the vocabulary has no such token.
    """
    tokens = dict.fromkeys(slot.removesuffix(":1") for slot in (*single, *pair) if slot[:2] not in ("$A", "$B"))
    named = [(token, core.token_to_id(token)) for token in tokens]
    if missing := next((token for token, token_id in named if token_id is None), None):
        raise UserError(f"the vocabulary has no token {missing!r}, which is to stand around its texts")
    core.post_processor = processors.TemplateProcessing(single=[*single], pair=[*pair], special_tokens=named)


def _read(processor: Mapping[str, Any]) -> Wrapping:
    a, kind = Slot("A", 0), processor["type"]
    if kind == "BertProcessing":
        cls, sep = Slot((processor["cls"][1],), 0), processor["sep"][1]
        return Wrapping((cls, a, Slot((sep,), 0)), (cls, a, Slot((sep,), 0), Slot("B", 1), Slot((sep,), 1)))
    if kind == "RobertaProcessing":  # every type is 0
        cls, sep = Slot((processor["cls"][1],), 0), Slot((processor["sep"][1],), 0)
        return Wrapping((cls, a, sep), (cls, a, sep, sep, Slot("B", 0), sep))
    if kind == "TemplateProcessing":
        special = {name: tuple(token["ids"]) for name, token in processor["special_tokens"].items()}
        return Wrapping(_slots(processor["single"], special), _slots(processor["pair"], special))
    raise UserError(f"the tokenizer's post-processor is of the unknown kind {kind!r}")


def _slots(template: Sequence[Mapping[str, Any]], special: Mapping[str, tuple[int, ...]]) -> tuple[Slot, ...]:
    slots = []
    for entry in template:
        if "Sequence" in entry:
            slots.append(Slot(entry["Sequence"]["id"], entry["Sequence"]["type_id"]))
        else:
            slots.append(Slot(special[entry["SpecialToken"]["id"]], entry["SpecialToken"]["type_id"]))
    return tuple(slots)
