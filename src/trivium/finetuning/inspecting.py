"""The rows of a recipe as the model sees them: every id as text, and which of them are learned.

What is shown is taken from the very rows that are trained on, cut and all. Invariant its test checks: the learned text
of a row is its answers and what ends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from trivium.errors import UserError, nearest
from trivium.finetuning.head_rows import HeadRows, spread
from trivium.finetuning.pieces import InstructRows
from trivium.finetuning.prepared import SourceRows
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.run import TASKS
from trivium.finetuning.trained_model import tokenizer_and_config
from trivium.progress import SILENT, Progress
from trivium.tokenizer.bpe import Tokenizer

Parts = list[tuple[str, bool]]


@dataclass(frozen=True)
class ShownRow:
    """One example."""

    source: str
    where: str
    """File and row; empty for rows of a task by a head."""
    ids: list[int]
    """What the model reads; an encoder-decoder's target."""
    learned: list[bool]
    """Which of them it learns to write; none for a head."""
    text: str
    """What it reads, special tokens and all."""
    num_learned: int
    reads: str | None = None
    """What an encoder-decoder's encoder reads."""
    target: Any = None
    """What a head is to say."""
    parts: Parts | None = None
    """The text in pieces, each with whether it is learned."""


@dataclass(frozen=True)
class Inspection:
    """Some rows of each source, and what is known of all."""

    rows: Sequence[ShownRow]
    dropped: Sequence[dict[str, str]]
    """{"source", "where", "why"} of each row that is left out."""
    facts: dict[str, Any]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        rows = [{key: value for key, value in asdict(row).items() if key != "parts"} for row in self.rows]
        return {"rows": rows, "dropped": list(self.dropped), "facts": self.facts, "notes": list(self.notes)}


def inspect(
    recipe: FinetuneRecipe, count: int = 3, source: str | None = None, progress: Progress = SILENT
) -> Inspection:
    """`count` training rows of each source (of one alone where `source` names it), spread evenly."""
    tokenizer, config = tokenizer_and_config(recipe.start_from)
    task = TASKS[recipe.task.name](recipe, tokenizer, config, progress)
    names = [each.name for each in task.train]
    if source is not None and source not in names:
        near = nearest(source, names)
        raise UserError(f"--source {source}: " + (f"did you mean {near}?" if near else f"there are {', '.join(names)}"))
    chosen = [each for each in task.train if source in (None, each.name)]
    dropped = [
        {"source": each.name, "where": where, "why": why}
        for each in chosen
        if isinstance(each.rows, InstructRows)
        for where, why in each.rows.pieces.left.dropped
    ]
    rows = [row for each in chosen for row in _shown(each, count, tokenizer)]
    return Inspection(rows, dropped, dict(task.facts or {}), list(task.notes))


def _shown(source: SourceRows, count: int, tokenizer: Tokenizer) -> Iterator[ShownRow]:
    rows = source.rows
    if isinstance(rows, InstructRows):
        for number in spread(count, len(rows.pieces)):
            found = rows.pieces.rendered(number)
            reads = None if found.source is None else tokenizer.decode(found.source)
            yield _row(source.name, rows.pieces.wheres[number], found.ids, found.learned, tokenizer, reads=reads)
    elif isinstance(rows, HeadRows):
        for number in spread(count, len(rows)):
            example = rows.row(number)
            ids = example.ids.tolist()
            target: Any = getattr(example.target, "tolist", lambda: example.target)()  # noqa: B023 (called here)
            yield _row(source.name, "", ids, [False] * len(ids), tokenizer, target=target)
    else:  # general text, in packed rows
        for number in spread(count, len(rows)):
            for example in rows.row(number)[:1]:
                ids, targets = example.ids.tolist(), example.targets.tolist()
                reads = None if example.source is None else tokenizer.decode(example.source.tolist())
                ids = targets if reads is not None else [*ids, targets[-1]]
                learned = [True] * len(ids) if reads is not None else [False, *(target >= 0 for target in targets)]
                yield _row(source.name, "", ids, learned, tokenizer, reads=reads)


def _row(
    source: str, where: str, ids: list[int], learned: list[bool], tokenizer: Tokenizer, **further: Any
) -> ShownRow:
    parts = [
        (tokenizer.decode([token for token, _ in some]), is_learned)
        for is_learned, some in groupby(zip(ids, learned, strict=True), key=lambda each: each[1])
    ]
    return ShownRow(source, where, ids, learned, tokenizer.decode(ids), sum(learned), parts=parts, **further)


def marked(row: ShownRow, opening: str = "[[", closing: str = "]]") -> str:
    """A row as text in which what is learned stands between marks."""
    share = 100 * row.num_learned / max(1, len(row.ids))
    head = f"{row.source}" + (f", {row.where}" if row.where else "")
    lines = [f"{head}: {len(row.ids)} tokens, {row.num_learned} learned ({share:.0f} %)"]
    if row.reads is not None:
        lines.append(f"reads: {row.reads}")
    said = "".join(f"{opening}{text}{closing}" if learned else text for text, learned in row.parts or ())
    lines.append(said if row.reads is None else f"writes: {said}")
    if row.target is not None:
        lines.append(f"to be told: {row.target}")
    return "\n".join(lines)
