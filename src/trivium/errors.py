"""What a user is meant to see when work ends early.

A `UserError` is one clear line: what is wrong, where (file, row, key), and how to mend it. The command line
prints it without a traceback and exits with status 2. An `Interrupted` is a stop that was asked for, after
everything was saved. Everything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input, said in one line with its cure (several mistakes at once: one line each)."""


class Interrupted(Exception):
    """A signal stopped the work in good order: what was done is saved, and the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """The status a shell expects of a process ended by this signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word` (None when nothing is close): the cure for a misspelling."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
