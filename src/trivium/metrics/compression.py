"""What a text costs without a language model: the baselines that held-out bits per byte must beat.

`unigram_bits_per_byte` is the empirical entropy of the text's own tokens: no model that ignores context, however it
was trained, encodes that text in fewer bits. `xz_bits_per_byte` is the size of the file that `xz` makes of the same
bytes.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable

from trivium.errors import UserError


def unigram_bits_per_byte(token_counts: Iterable[int], num_bytes: int) -> float:
    """Bits per byte of the best code that gives each kind of token a fixed length.

    `token_counts` holds how often each kind of token occurs in the text (zeros are allowed); `num_bytes` is the size
    of that text in UTF-8 bytes. Raises UserError when the text is empty.
    """
    counts = [count for count in token_counts if count]
    if not counts or num_bytes <= 0:
        raise UserError("unigram entropy: the text is empty; give one with at least one token")
    total = sum(counts)
    bits = math.fsum(count * math.log2(total / count) for count in counts)
    return bits / num_bytes


def xz_bits_per_byte(data: bytes, *, extreme: bool = True) -> float:
    """Bits per byte of `data` as compressed by `xz -9e` (`xz -9` when not `extreme`), container included.

    Needs about 700 MB of address space, as `xz -9` does. Raises UserError when `data` is empty.
    """
    if not data:
        raise UserError("xz baseline: the data is empty; give at least one byte")
    preset = 9 | lzma.PRESET_EXTREME if extreme else 9
    return 8 * len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=preset)) / len(data)
