"""Which text is held out from training: by the hash of each document, or the tail of each.

By document: a document is held out when SHA-256 of its text, as a number between 0 and 1, is below the fraction. So
its side depends on nothing but the text: adding, removing or reordering other documents moves none, copies of a
document are always together, and a larger fraction only adds to a smaller one. By tail: the last part of each
document's characters is held out, for corpora of a few long texts (Tiny Shakespeare is usually split so).
"""

from __future__ import annotations

import hashlib

_SALT = b"trivium held-out split 1\n"


def is_held_out(text: str, fraction: float) -> bool:
    """Whether this document belongs to the held-out `fraction` (0 to 1) of all documents."""
    digest = hashlib.sha256(_SALT + text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def split_tail(text: str, fraction: float) -> tuple[str, str]:
    """(head, tail): the last `fraction` of the characters is the tail."""
    cut = int(len(text) * (1.0 - fraction))
    return text[:cut], text[cut:]
