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
    """The known word closest to `word` (None when nothing is close): the cure for a misspelling.

    A word of the very same letters in another order comes before any other.
    """
    matches = get_close_matches(word, list(known), n=3, cutoff=0.6)
    same_letters = [match for match in matches if sorted(match) == sorted(word)]
    return next(iter([*same_letters, *matches]), None)
