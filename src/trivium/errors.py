"""The one error a user is meant to see.

A `UserError` is one clear line: what is wrong, where (file, row, key), and how to mend it. The command line
prints it without a traceback and exits with status 2. Everything else that is raised is a bug of ours and keeps
its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input, said in one line with its cure (several mistakes at once: one line each)."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word` (None when nothing is close): the cure for a misspelling."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
