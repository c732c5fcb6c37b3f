"""Learning a byte-level BPE vocabulary from text, in bounded memory.

Byte-pair encoding (Sennrich et al., 2016) over the 256 bytes (Radford et al., 2019): the `tokenizers` library counts
and merges, this module decides which text it sees. Words are cut by Llama 3's pattern with one departure: every run is
bounded (`LONGEST_RUN`), so that a megabyte of one character is many short words instead of one endless one. Runs within
the bound are cut exactly as Llama 3 cuts them, hence tools that know that pattern by name (llama.cpp's `llama-bpe`)
produce the same ids.

Memory. Two budgets, both deterministic: at most `max_text_bytes` of text are read into the counts (an even sample when
there is more), and reading stops when the distinct words seen so far hold `max_word_bytes` bytes. The merging needs
about 100 to 150 bytes of memory per byte of distinct words (measured: 130 on Python sources, 70 to 95 on random
letters), so the default keeps the worst corpus under about 2.5 GB. A process that learns from 100 MB of Python
sources peaks at 0.33 GB.

Invariant: the same input gives the same `tokenizer.json`, byte for byte.
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.progress import Progress

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
DEFAULT_SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)

LONGEST_RUN = 128
"""Longest run of letters, punctuation or white space, in characters, that can be one word."""
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}{1,128}"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]{1,128}[\r\n]{0,128}"
    r"|\s{0,128}[\r\n]{1,128}"
    r"|\s{1,128}(?!\S)"
    r"|\s{1,128}"
).replace("128", str(LONGEST_RUN))
WORD_REACH = 4 * LONGEST_RUN
"""No word, and nothing the pattern looks at to find its end, is longer than this many characters."""

LARGEST_VOCABULARY = 1_000_000
LARGEST_TEXT_BUDGET = 2**31 - 1
"""Bytes; pair counts can then never overflow 32 bits."""
_PIECE_BYTES = 1 << 17


def byte_level_words() -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer: cut into words by `WORD_PATTERN`, then write each byte as one printable character."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def learn(
    files: Sequence[str | Path],
    texts: Iterable[str] | None,
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    max_text_bytes: int,
    max_word_bytes: int,
    progress: Progress,
) -> Core:
    """A byte-level BPE of at most `vocab_size` entries: special tokens first, then the 256 bytes, then the merges.

    Raises UserError for impossible sizes, special tokens that clash, files that cannot be read, and no text at all.
    """
    smallest = 256 + len(special_tokens)
    _check_request(files, texts, vocab_size, special_tokens, max_text_bytes)
    corpus = _Corpus(special_tokens, max_text_bytes, max_word_bytes, progress)
    core = Core(models.BPE())
    core.pre_tokenizer = byte_level_words()
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once is a memory of one place, not a part of the language
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    if vocab_size == smallest:  # bytes alone: there is nothing to learn
        core.train_from_iterator(iter(()), trainer)
        return core
    stream = corpus.from_texts(texts) if texts is not None else corpus.from_files([Path(f) for f in files])
    core.train_from_iterator(stream, trainer)
    progress.finish()
    if corpus.used_bytes == 0:
        raise UserError("there is no text to learn a vocabulary from: the files or texts given are empty")
    if core.get_vocab_size() < vocab_size:
        progress.note(
            f"the text supports {core.get_vocab_size():,} vocabulary entries, not the {vocab_size:,} asked for: "
            "no other pair of tokens occurs twice"
        )
    return core


def _check_request(
    files: Sequence[str | Path],
    texts: Iterable[str] | None,
    vocab_size: int,
    special_tokens: Sequence[str],
    max_text_bytes: int,
) -> None:
    smallest = 256 + len(special_tokens)
    if not smallest <= vocab_size <= LARGEST_VOCABULARY:
        raise UserError(
            f"vocab_size={vocab_size} is outside {smallest:,} to {LARGEST_VOCABULARY:,}: "
            f"256 bytes and {len(special_tokens)} special tokens always have their place"
        )
    if not all(special_tokens) or len(set(special_tokens)) < len(special_tokens):
        raise UserError(f"special tokens must be different and not empty, but they are {list(special_tokens)}")
    clash = set(special_tokens) & set(pre_tokenizers.ByteLevel.alphabet())
    if clash:
        raise UserError(f"special token {min(clash)!r} is how a single byte is written: choose a longer name")
    if not 1 <= max_text_bytes <= LARGEST_TEXT_BUDGET:
        raise UserError(f"max_text_bytes={max_text_bytes} is outside 1 to {LARGEST_TEXT_BUDGET:,}")
    if files and texts is not None:
        raise UserError("give either files or texts to learn a tokenizer from, not both")
    if isinstance(texts, str) or isinstance(files, str | Path):
        raise UserError("files and texts are lists: put the one you have in brackets")
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"{file} is not a file, so no vocabulary can be learned from it")


class _Corpus:
    """What the vocabulary is learned from, and the account of it: bytes used, bytes seen, bytes that were no text."""

    def __init__(self, special_tokens: Sequence[str], max_text: int, max_words: int, progress: Progress) -> None:
        self.used_bytes = 0
        self._separators = re.compile("|".join(map(re.escape, special_tokens)) or "(?!)")
        self._max_text = max_text
        self._max_words = max_words
        # Small budgets get small pieces, so that a sample is always many places of the text.
        self._piece_bytes = max(1024, min(_PIECE_BYTES, max_text // 64))
        self._progress = progress

    def from_files(self, files: Sequence[Path]) -> Iterator[str]:
        """Text of the files; when they exceed the budget, evenly spread pieces of them."""
        total = sum(file.stat().st_size for file in files)
        pieces = (piece for file in files for piece in _pieces_of_file(file, self._piece_bytes))
        return self._text(_evenly(pieces, self._max_text, total), min(total, self._max_text), total)

    def from_texts(self, texts: Iterable[str]) -> Iterator[str]:
        """Text of an iterator of unknown length: held (as bytes) up to the budget, then thinned by halves.

        Piece number i is kept while a hash of i falls under the current share, so which pieces are kept depends on
        their number and the total alone.
        """
        kept: deque[tuple[int, bytes]] = deque()
        size = total = index = halvings = 0
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"texts to learn from must be strings, but one is of type {type(text).__name__}")
            for piece in _pieces_of_bytes(text.encode("utf-8", "surrogatepass"), self._piece_bytes):
                index += 1
                total += len(piece)
                if not _survives(index, halvings):
                    continue
                kept.append((index, piece))
                size += len(piece)
                while size > self._max_text:
                    halvings += 1
                    kept = deque((i, p) for i, p in kept if _survives(i, halvings))
                    size = sum(len(p) for _, p in kept)
        # Handed over one by one: what has been counted is let go.
        return self._text((kept.popleft()[1] for _ in range(len(kept))), size, total)

    def _text(self, pieces: Iterable[bytes], expected: int, total: int) -> Iterator[str]:
        """The pieces as text without special tokens, until the word budget is spent; notes say what was left out."""
        self._progress.start("counting words", total=expected, unit="B")
        words = _WordBudget(self._max_words)
        invalid = 0
        for piece in pieces:
            text = piece.decode("utf-8", "replace")
            invalid += text.count("\ufffd") - piece.count(b"\xef\xbf\xbd")
            if not words.admits(text):
                self._progress.note(
                    f"stopped reading after {self.used_bytes:,} bytes: the distinct words fill the memory budget "
                    f"(max_word_bytes={self._max_words:,})"
                )
                break
            self.used_bytes += len(piece)
            self._progress.advance(len(piece))
            yield from filter(None, self._separators.split(text))
        self._progress.finish()
        if self.used_bytes < total:
            self._progress.note(
                f"learned from {self.used_bytes:,} of {total:,} bytes of text ({self.used_bytes / total:.1%})"
            )
        if invalid:
            self._progress.note(f"{invalid:,} byte sequences were not UTF-8 text and were read as U+FFFD")
        self._progress.start("learning merges")


class _WordBudget:
    """How many bytes the distinct words seen so far hold, estimated in a fixed 16 MB.

    A word is a run of letters or of punctuation. A word counts as seen when its checksum has been met; two words share
    one of the 2^24 places so rarely, while the default budget lasts, that the estimate is a few per cent low at most.
    """

    _WORDS = re.compile(rf"[^\W\d_]{{1,{LONGEST_RUN}}}|[^\w\s]{{2,{LONGEST_RUN}}}")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._met = bytearray(1 << 24)

    def admits(self, text: str) -> bool:
        """Count the words of `text`; False when the budget was spent before it."""
        if self._used >= self._limit:
            return False
        for word in set(self._WORDS.findall(text)):
            data = word.encode()
            place = zlib.crc32(data) & 0xFFFFFF
            if not self._met[place]:
                self._met[place] = 1
                self._used += len(data)
        return True


def _evenly(pieces: Iterable[bytes], limit: int, total: int) -> Iterator[bytes]:
    """Every piece while `total` bytes are within `limit`; else pieces spread over the whole that sum to `limit`."""
    share = min(1.0, limit / max(total, 1))
    seen = used = 0
    for piece in pieces:
        seen += len(piece)
        if used + len(piece) <= share * seen:
            used += len(piece)
            yield piece


def _survives(index: int, halvings: int) -> bool:
    """Whether piece `index` is among the 1 in 2^halvings that are kept: those kept at n + 1 are kept at n.

    Multiples of the golden ratio fall evenly into the unit interval (Weyl), so the kept pieces are evenly spread.
    """
    return (index * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF_FFFF_FFFF) >> (64 - halvings) == 0


def _pieces_of_file(path: Path, size: int) -> Iterator[bytes]:
    """A file in pieces of about `size` bytes that end at a line end, or else between two characters."""
    rest = b""
    try:
        with path.open("rb") as file:
            while block := file.read(size):
                block = rest + block
                cut = _last_cut(block)
                rest = block[cut:]
                if cut:
                    yield block[:cut]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if rest:
        yield rest


def _pieces_of_bytes(data: bytes, size: int) -> Iterator[bytes]:
    """The same pieces of text that is already in memory."""
    start = 0
    while len(data) - start > size:
        cut = _last_cut(data[start : start + size])
        yield data[start : start + cut]
        start += cut
    if start < len(data):
        yield data[start:]


def _last_cut(block: bytes) -> int:
    """Where to end a piece of UTF-8: after the last newline, else before a character that the block cuts in two.

    Never 0 unless the block is empty, so that whoever cuts goes on.
    """
    newline = block.rfind(b"\n") + 1
    if newline:
        return newline
    for back in range(1, min(4, len(block)) + 1):
        if block[-back] >= 0xC0:  # the first byte of a character of several bytes
            return len(block) - back or len(block)
        if block[-back] < 0x80:
            break
    return len(block)
