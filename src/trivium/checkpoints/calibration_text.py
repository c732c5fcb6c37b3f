"""Text as a model reads it, for quantization methods that look at what its matrices really see.

Windows of equal length and no padding: of a decoder from its text as it stands, of an encoder between its special
tokens, of an encoder-decoder pairs of neighbouring windows, the one before as source and the one after as target.
Without text of one's own it is the standard library of Python: the first tokens of files spread evenly over it, which
are docstrings in English and code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trivium.data.corpus import standard_library_rows
from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.quantization.calibration import Batch
from trivium.tokenizer.bpe import Tokenizer

WINDOWS, WINDOW_TOKENS = 32, 256
"""How many windows are read, and of how many tokens each."""
ROWS = 4
"""Windows in one batch."""
SHORTEST_TEXT = 16
"""Characters per token that a file must have to be read; hardly a token of prose or code is longer on the average."""
MEASURED_CHARACTERS = 4000
"""How much of each file is measured on."""


def calibration_batches(
    config: ModelConfig, tokenizer: Tokenizer, texts: Sequence[str] | None = None, windows: int = WINDOWS
) -> Sequence[Batch]:
    """Batches of ids (B, T), of an encoder-decoder pairs of them, from `texts` (None: the standard library).

    Raises UserError for text too short to fill one window.
    """
    length = min(WINDOW_TOKENS, config.max_positions)
    around = tokenizer.wrap([])[0] if config.kind != "decoder" else []
    length -= len(around)
    wanted = windows * (2 if config.kind == "encoder-decoder" else 1)
    pieces = _spread(tokenizer, length, wanted) if texts is None else _in_turn(tokenizer, texts, length, wanted)
    if len(pieces) < wanted // windows:
        raise UserError(f"calibration: the text has fewer than {length * (wanted // windows)} tokens: give more of it")
    if config.kind == "decoder":
        return _batched(pieces)
    whole = [tokenizer.wrap(piece)[0] for piece in pieces]
    if config.kind == "encoder":
        return _batched(whole)
    targets = [[config.decoder_start_id, *row[:-1]] for row in whole[1::2]]
    sources = whole[0::2][: len(targets)]
    return list(zip(_batched(sources), _batched(targets), strict=True))


def measuring_text() -> str:
    """Text of the standard library that calibration does not see: the ends of files between those it reads."""
    texts = _library_texts(MEASURED_CHARACTERS)
    step = max(1, len(texts) // WINDOWS)
    return "\n\n".join(text[-MEASURED_CHARACTERS:] for text in texts[step // 2 :: step][:WINDOWS])


def _spread(tokenizer: Tokenizer, length: int, wanted: int) -> list[list[int]]:
    """The first `length` tokens of files spread evenly over the standard library."""
    texts = _library_texts(SHORTEST_TEXT * length)
    found = (
        tokenizer.encode(text[: SHORTEST_TEXT * length])[:length] for text in texts[:: max(1, len(texts) // wanted)]
    )
    return [ids for ids in found if len(ids) == length][:wanted]


def _library_texts(shortest: int) -> list[str]:
    """Files of the standard library of at least so many characters."""
    texts = (str(row.values["text"]) for row in standard_library_rows())
    return [text for text in texts if len(text) >= shortest]


def _in_turn(tokenizer: Tokenizer, texts: Sequence[str], length: int, wanted: int) -> list[list[int]]:
    """The first windows of the texts, one after another."""

    def windows() -> Iterator[list[int]]:
        kept: list[int] = []
        for text in texts:
            kept += tokenizer.encode(text)
            while len(kept) >= length:
                yield kept[:length]
                kept = kept[length:]

    return [window for window, _ in zip(windows(), range(wanted), strict=False)]


def _batched(rows: Sequence[Sequence[int]]) -> list[Tensor]:
    return [torch.tensor(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
