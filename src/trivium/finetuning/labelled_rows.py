"""Rows of a text, or of two, and what is to be told of them: {text, label}, {text, pair, label} and what GLUE calls it.

The text is `text` or `sentence`; of two texts they are `text` and `pair`, `sentence1` and `sentence2`, or `premise` and
`hypothesis`; `data.columns` gives others these names. Beside `label` further keys are let be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.data.row import Row
from trivium.errors import UserError, nearest
from trivium.finetuning.data_settings import FinetuneData
from trivium.finetuning.source_rows import Split, read_split

PAIRS = (("text", "pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"))
SINGLES = ("text", "sentence")


@dataclass(frozen=True)
class Labelled:
    """A text, or two, with its label as the file has it."""

    text: str
    pair: str | None
    label: str | int | float | bool
    where: str
    """File and row."""

    @property
    def asked(self) -> str:
        """All but the label."""
        return self.text if self.pair is None else f"{self.text}\n{self.pair}"


def read_labelled(data: FinetuneData) -> Split[Labelled]:
    """All sources. UserError for a row without its texts or its label."""
    return read_split(data, labelled_of, lambda example: example.asked)


def labelled_of(row: Row) -> Iterator[Labelled]:
    """The one example of a row."""
    values = {key: value for key, value in row.values.items() if value is not None}
    pair = next((pair for pair in PAIRS if all(key in values for key in pair)), None)
    single = next((key for key in SINGLES if key in values), None)
    keys = pair or (single,)
    if keys[0] is None or "label" not in values:
        raise UserError(_unusable(row, values, "label" if keys[0] is not None else "text"))
    label = values["label"]
    if not isinstance(label, str | int | float | bool):
        raise UserError(f"{row.where}: 'label' must be a text, a number or true or false, not {type(label).__name__}")
    texts = [values[key] for key in keys if key]
    for key, text in zip(keys, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{row.where}: {key!r} must be a text, not {type(text).__name__}")
    yield Labelled(texts[0], texts[1] if pair else None, label, row.where)


def _unusable(row: Row, values: Mapping[str, Any], missing: str) -> str:
    """The message for a row that lacks a text or a label."""
    near = nearest(missing, map(str, values))
    guess = f"did you mean {near!r}? then write columns: {{{missing}: {near}}}" if near else (
        f"name the column that holds it: columns: {{{missing}: NAME}}"
    )  # fmt: skip
    listed = ", ".join(map(repr, row.values)) or "(none)"
    return f"{row.where}: has no {missing!r} (its keys: {listed}); {guess}"


def label_text(label: str | int | float | bool, where: str) -> str:
    """A class as text: as it is, a whole number in digits, `true` or `false`. UserError for other numbers."""
    if isinstance(label, str):
        return label
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and not label.is_integer():
        raise UserError(f"{where}: the label {label} is no class but a number: task=regress learns numbers")
    return str(int(label))


def classes_of(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """The classes of these rows: in numerical order where all are whole numbers, else sorted."""
    found = {label_text(example.label, example.where) for example in examples}
    return tuple(sorted(found, key=int)) if all(map(_is_whole, found)) else tuple(sorted(found))


class ClassNumbers:
    """From labels to the numbers of classes."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Where no class is itself called by a number (`true`, `false`), a label may also be a class's number (or
        say whether it is the second of two): data often has 0 and 1 for what the recipe calls negative, positive."""
        self.labels = tuple(labels)
        self._numbers = {name: number for number, name in enumerate(labels)}
        if not any(map(_is_whole, labels)):
            self._numbers |= {str(number): number for number in range(len(labels))}
        if len(labels) == 2 and not {"true", "false"} & set(labels):
            self._numbers |= {"false": 0, "true": 1}

    def of(self, example: Labelled) -> int:
        """The number of the row's class. UserError, with file, row and cure, for one that is none of them."""
        label = label_text(example.label, example.where)
        if label in self._numbers:
            return self._numbers[label]
        near = nearest(label, self.labels)
        listed = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
        raise UserError(
            f"{example.where}: the label {label!r} is none of the {len(self.labels)} classes ({listed}); "
            + (f"did you mean {near!r}? " if near else "")
            + "mend the row, or name all classes in task.labels"
        )


def number_of(example: Labelled) -> float:
    """The label as a number. UserError, with file and row, where it is none."""
    label = example.label
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{example.where}: the label {label!r} is no number, and task=regress learns numbers; for classes use "
            "task=classify"
        )
    return value


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdigit()
