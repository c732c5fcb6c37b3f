"""Which token plays which part: beginning, end, padding, unknown, class, separator, mask.

Published files name them (`bos_token`, ...), but not always: the files of GPT-2, RoBERTa or T5 leave to the reader what
everybody knows of that family. `completed` fills in what the files are silent about from the special tokens that the
vocabulary holds; a role that the files set to null stays empty.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace

SENTINEL = re.compile(r"<extra_id_(\d{1,6})>")
"""T5's marks of the spans that were taken out."""


@dataclass(frozen=True)
class Roles:
    """The text of the token in each role; None where there is none."""

    bos: str | None = None
    """Begins a text."""
    eos: str | None = None
    """Ends a text."""
    pad: str | None = None
    """Fills up a row."""
    unk: str | None = None
    """Stands for what the vocabulary cannot write."""
    cls: str | None = None
    """Stands first where a whole text is judged."""
    sep: str | None = None
    """Closes each of one or two texts."""
    mask: str | None = None
    """Stands where a token was hidden."""

    def named(self) -> dict[str, str]:
        """The roles that are filled, by name (`bos`, `eos`, ...)."""
        return {name: token for name in ROLE_NAMES if (token := getattr(self, name)) is not None}


ROLE_NAMES = tuple(field.name for field in fields(Roles))
"""In files each is followed by `_token`."""

# The first whose roles' required tokens (those of the set) are all special tokens of the vocabulary applies.
_CONVENTIONS: tuple[tuple[frozenset[str], Roles], ...] = (
    (frozenset({"[CLS]", "[SEP]"}), Roles(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")),
    (
        frozenset({"<s>", "</s>", "<mask>"}),
        Roles(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>"),
    ),
    (frozenset({"</s>", "<pad>", "<extra_id_0>"}), Roles(eos="</s>", pad="<pad>", unk="<unk>")),
    (frozenset({"<s>", "</s>"}), Roles(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")),
    (frozenset({"<bos>", "<eos>"}), Roles(bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")),
    (frozenset({"<|endoftext|>"}), Roles(bos="<|endoftext|>", eos="<|endoftext|>")),
)


def completed(roles: Roles, silent: Collection[str], special: Collection[str]) -> Roles:
    """`roles` with those named in `silent` filled by convention, as far as `special` holds the tokens."""
    for required, usual in _CONVENTIONS:
        if required <= set(special):
            return replace(roles, **{role: t for role, t in usual.named().items() if role in silent and t in special})
    return roles


def sentinels(vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of `<extra_id_0>`, `<extra_id_1>`, ... in the order of their numbers."""
    numbered = [(int(match[1]), vocabulary[token]) for token in vocabulary if (match := SENTINEL.fullmatch(token))]
    return [token_id for _, token_id in sorted(numbered)]
