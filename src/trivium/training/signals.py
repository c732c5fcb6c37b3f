"""SIGTERM and SIGINT end a run in good order: the handler sets a flag, the loop does the rest.

Nothing is saved in the handler: it may run in the middle of anything. The loop finishes its step, saves, and raises
`Interrupted`. A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

CAUGHT_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The run was asked to end and did, with everything saved. Uncaught, it ends the process with its exit code."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(128 + signal_number)
        self.exit_code = 128 + signal_number
        """143 for SIGTERM, 130 for SIGINT."""
        self.step = step
        """How many steps were done (and saved, where there is a store)."""

    def __str__(self) -> str:
        name = signal.Signals(self.exit_code - 128).name
        return f"ended by {name} after step {self.step}; `trivium resume` goes on from there"


@dataclass
class Caught:
    """What has arrived so far."""

    signal_number: int = 0
    """0: nothing yet."""


@contextlib.contextmanager
def catch_signals() -> Iterator[Caught]:
    """Within, the first SIGTERM or SIGINT is noted and the second ends the process. Off the main thread: nothing."""
    caught = Caught()

    def note(number: int, frame: FrameType | None) -> None:
        if caught.signal_number:
            os._exit(128 + number)
        caught.signal_number = number

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in CAUGHT_SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # It came too late for the loop to see it: whoever was listening before is told.
    if caught.signal_number:
        signal.raise_signal(caught.signal_number)
