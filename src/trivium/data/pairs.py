"""Pairs of texts: rows of {source, target} or {prompt, response}, or the lines of two parallel files.

Both sides are kept as token shards of their own, in the same order: pair i is document i of each. A pair is held out
by the hash of both its texts (`split.py`), so that a source with several targets may be on either side but equal pairs
never are. The invariant its test checks: the two sides have equally many documents, and document i of each comes from
the same row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.data.prepare import Part, cache_of, described, held_out_part
from trivium.data.readers import read_rows
from trivium.data.row import Row, place
from trivium.data.rows import Conversation, Pair, parse_row
from trivium.data.settings import DataSettings
from trivium.data.shards import Shards, build_shards, fingerprint_of
from trivium.data.split import is_held_out
from trivium.data.streams import read_lines
from trivium.data.text_encoder import TextEncoder
from trivium.errors import UserError
from trivium.files import sha256_of_file
from trivium.progress import SILENT, Progress

Languages = tuple[str, str]

SIDES = ("source", "target")


@dataclass(frozen=True)
class PairShards:
    """Tokenized pairs: document i of both sides is pair i."""

    sources: Shards
    targets: Shards

    @property
    def num_documents(self) -> int:
        """How many pairs there are."""
        return self.sources.num_documents

    @property
    def num_tokens(self) -> int:
        """Ids of both sides, their ends included."""
        return self.sources.num_tokens + self.targets.num_tokens

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of both sides."""
        return self.sources.num_bytes + self.targets.num_bytes


@dataclass(frozen=True)
class PreparedPairs:
    """Tokenized pairs, ready to be packed into rows."""

    train: tuple[tuple[PairShards, float | None], ...]
    """Each training source with its weight."""
    held_out: PairShards | None
    """What is never trained on."""


def prepare_pairs(
    settings: DataSettings,
    languages: Languages | None,
    tokenizer: TextEncoder,
    cache_directory: Path | None = None,
    progress: Progress = SILENT,
) -> PreparedPairs:
    """The shards of both sides, found in the cache or built there; as `prepare` does for texts."""
    cache = cache_directory or cache_of(settings)

    def build(paths: Sequence[str], part: Part, title: str) -> PairShards:
        sides = []
        for number, side in enumerate(SIDES):
            made_from = _made_from(settings, languages, paths, part, side)
            sides.append(
                build_shards(
                    (_text(pair, number) for pair in pairs_of(settings, languages, paths, part)),
                    tokenizer,
                    cache / f"{title}-{side}s-{fingerprint_of(made_from, tokenizer)[:16]}",
                    made_from=made_from,
                    verify=settings.verify_cache,
                    description=f"{title} {side}s",
                    progress=progress,
                )
            )
        return PairShards(*sides)

    _refuse_text_settings(settings)
    fraction = settings.resolved_held_out_fraction
    train = []
    for source in settings.train:
        pairs = build([source.path], "train" if fraction else "all", "train")
        if not pairs.sources.num_documents:
            raise UserError(f"{source.path}: no pair is left to train on")
        train.append((pairs, source.weight))
    paths, part = held_out_part(settings)
    if not paths:
        return PreparedPairs(tuple(train), None)
    held_out = build(paths, part, "held-out")
    if not held_out.sources.num_documents:
        raise UserError(
            f"no pair is held out: a share of {fraction} of so few comes to none; set a larger "
            "data.held_out_fraction, data.validation=FILE, or data.held_out_fraction=0"
        )
    return PreparedPairs(tuple(train), held_out)


def training_pair_texts(settings: DataSettings, languages: Languages | None) -> Iterator[str]:
    """Both texts of every pair that is trained on: what a tokenizer may learn from."""
    part: Part = "train" if settings.resolved_held_out_fraction else "all"
    pairs = pairs_of(settings, languages, [source.path for source in settings.train], part)
    return itertools.chain.from_iterable((pair.source, pair.target) for pair in pairs)


def held_out_pairs(settings: DataSettings, languages: Languages | None) -> Iterator[Pair]:
    """The pairs that are never trained on, in order; none where nothing is held out."""
    return pairs_of(settings, languages, *held_out_part(settings))


def pairs_of(settings: DataSettings, languages: Languages | None, paths: Sequence[str], part: Part) -> Iterator[Pair]:
    """The pairs at `paths`, or the part of them that is trained on or held out."""
    for path in paths:
        for pair in itertools.islice(_limited(read_pairs(path, languages), settings.max_bytes), settings.max_documents):
            inside = part == "all" or _is_held_out(pair, settings) == (part == "held-out")
            if inside:
                yield pair


def read_pairs(path: str, languages: Languages | None) -> Iterator[Pair]:
    """The pairs of a file, folder, glob or hub set of rows; with `languages`, those of two parallel texts.

    UserError for a row that is no pair or has an empty side, and for parallel texts of unequal length.
    """
    if languages is None:
        return map(_pair_of, read_rows(path))
    return _parallel(*(_parallel_file(path, ending) for ending in languages))


def _parallel_file(path: str, ending: str) -> Path:
    """One of two parallel texts, which must be there."""
    file = Path(f"{path}.{ending}")
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; data.train is the path without the endings of the languages")
    return file


def _pair_of(row: Row) -> Pair:
    parsed = parse_row(row)
    if isinstance(parsed, Conversation) and [message.role for message in parsed.messages] == ["user", "assistant"]:
        parsed = Pair(parsed.messages[0].content, parsed.messages[1].content)
    if not isinstance(parsed, Pair):
        raise UserError(
            f"{row.where}: is no pair of a source and a target (its keys: {', '.join(map(repr, row.values))}); give "
            "rows of source and target, or of prompt and response; for parallel texts set objective.languages"
        )
    return _both_filled(parsed, row.where)


def _both_filled(pair: Pair, where: str) -> Pair:
    for side, text in zip(SIDES, (pair.source, pair.target), strict=True):
        if not text or text.isspace():
            raise UserError(f"{where}: the {side} is empty; leave the pair out, or fill it in")
    return pair


def _parallel(source_path: Path, target_path: Path) -> Iterator[Pair]:
    """Line i of one file with line i of the other."""
    sources, targets = (_lines(path) for path in (source_path, target_path))
    for number, (source, target) in enumerate(itertools.zip_longest(sources, targets), 1):
        if source is None or target is None:
            short, long = (source_path, target_path) if source is None else (target_path, source_path)
            raise UserError(f"{short} ends before line {number}, which {long} has: parallel texts need equal lines")
        yield _both_filled(Pair(source, target), place(f"{source_path} and {target_path}", number))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, without their ends."""
    return (line.rstrip("\r\n") for _, line in read_lines(path))


def _limited(pairs: Iterable[Pair], max_bytes: int | None) -> Iterator[Pair]:
    """Pairs up to the one that reaches `max_bytes` of UTF-8."""
    num_bytes = 0
    for pair in pairs:
        yield pair
        if max_bytes is not None:
            num_bytes += len(pair.source.encode()) + len(pair.target.encode())
            if num_bytes >= max_bytes:
                return


def _text(pair: Pair, side: int) -> str:
    return pair.target if side else pair.source


def _is_held_out(pair: Pair, settings: DataSettings) -> bool:
    return is_held_out(f"{pair.source}\n{pair.target}", settings.resolved_held_out_fraction)


def _refuse_text_settings(settings: DataSettings) -> None:
    if settings.held_out_by == "tail":
        raise UserError("data.held_out_by=tail cuts texts, and pairs cannot be cut: leave it out")


def _made_from(
    settings: DataSettings, languages: Languages | None, paths: Sequence[str], part: Part, side: str
) -> dict[str, Any]:
    """Everything but the tokenizer that decides which texts a side holds."""
    limits = settings.model_dump(include={"max_documents", "max_bytes"})
    split = {} if part == "all" else {"fraction": settings.resolved_held_out_fraction}
    if languages is None:
        sources = [described(path) for path in paths]
    else:
        files = [_parallel_file(path, ending) for path in paths for ending in languages]
        sources = [{"bytes": file.stat().st_size, "sha256": sha256_of_file(file)} for file in files]
    parallel = languages is not None
    return {"pairs": side, "parallel": parallel, "part": part, "split": split, "limits": limits, "sources": sources}
