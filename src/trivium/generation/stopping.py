"""When a text ends: stop strings, matched on text and not on tokens.

A stop string may begin in the middle of one token and end in the middle of another, so tokens cannot tell.
`StopMatcher` reads the text as it grows, passes on what can no longer be part of a stop string, and holds back the
rest. Of several stop strings the one that is complete first ends the text (the longest, if several are complete at
once); this does not depend on how the text is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

# As in the OpenAI API. "stop": an end-of-text token or a stop string; "length": the token limit or the
# context's end.
FinishReason = Literal["stop", "length"]


class StopMatcher:
    """Cuts a growing text before the first stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        """True once a stop string was complete; what is pushed later is dropped."""
        self._held = ""

    def push(self, text: str) -> str:
        """Add `text`; returns what is now certain to come before any stop string."""
        if self.stopped:
            return ""
        pending = self._held + text
        # (end, start) of each stop string's first occurrence: the smallest is the first complete, then the
        # longest.
        found = [(start + len(stop), start) for stop in self.stop if (start := pending.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return pending[: min(found)[1]]
        certain = len(pending) - max((_overlap(pending, stop) for stop in self.stop), default=0)
        self._held = pending[certain:]
        return pending[:certain]

    def finish(self) -> str:
        """The text still held back, when the text ends otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
