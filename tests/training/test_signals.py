"""Row R6: a signal at any moment ends the run with everything saved, and it resumes to the bit.

Real signals throughout; each moment of a step in this process, a few in processes of their own for the exit codes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from training.interrupted_run import CHOSEN, Moments, run
from training.small import fails, same_bits, start_program, start_ranks, wait_for
from trivium.checkpoints.store import CheckpointStore
from trivium.runtime import Runtime
from trivium.training import loop
from trivium.training.log import read_log, repeatable
from trivium.training.signals import CAUGHT_SIGNALS, Interrupted, catch_signals

PROGRAM = Path(__file__).parent / "interrupted_run.py"
RUNTIME = Runtime(seed=3)
# The step that must be saved when the signal comes at that moment.
MOMENTS = {"forward": 4, "backward": 4, "update": 4, "evaluation": 5, "save": 6}


def end_of(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights, moments and log of a finished run."""
    checkpoint = CheckpointStore(folder / "checkpoints").load_latest()
    assert checkpoint is not None and checkpoint.step == CHOSEN.steps
    tensors = {f"{stem}/{name}": t for stem, named in checkpoint.tensors.items() for name, t in named.items()}
    return tensors, [repeatable(record) for record in read_log(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, Moments(""), RUNTIME)
    return end_of(folder)


def assert_equal(a: tuple[dict[str, Tensor], list[Any]], b: tuple[dict[str, Tensor], list[Any]]) -> None:
    assert same_bits(a[0], b[0])
    assert a[1] == b[1]


def interrupt_and_resume(folder: Path, moment: str, number: int) -> None:
    with pytest.raises(Interrupted) as interrupted:
        run(folder, Moments(moment, number), RUNTIME)
    assert interrupted.value.exit_code == 128 + number
    assert CheckpointStore(folder / "checkpoints").steps()[-1] == interrupted.value.step == MOMENTS[moment]
    run(folder, Moments(""), RUNTIME)


@pytest.mark.parametrize("moment", MOMENTS)
def test_saved_at_any_moment_and_resumed_to_the_bit(moment: str, tmp_path: Path, undisturbed: Any) -> None:
    number = signal.SIGINT if moment == "update" else signal.SIGTERM
    interrupt_and_resume(tmp_path, moment, number)
    assert_equal(end_of(tmp_path), undisturbed)


def test_the_same_evaluation_broken_off_twice_is_still_made_up_for(tmp_path: Path, undisturbed: Any) -> None:
    for _ in range(2):
        with pytest.raises(Interrupted) as interrupted:
            run(tmp_path, Moments("evaluation"), RUNTIME)
        assert interrupted.value.step == MOMENTS["evaluation"], "no step is taken before the evaluation that is due"
    run(tmp_path, Moments(""), RUNTIME)
    assert_equal(end_of(tmp_path), undisturbed)


def test_control_a_forgotten_evaluation_is_caught(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Trainer.measure

    def forgets(self: loop.Trainer) -> None:
        original(self)
        self.state.evaluation_due = False

    monkeypatch.setattr(loop.Trainer, "measure", forgets)
    interrupt_and_resume(tmp_path, "evaluation", signal.SIGTERM)
    assert fails(lambda: assert_equal(end_of(tmp_path), undisturbed))


def test_exit_code_of_a_process_and_of_a_second_signal(tmp_path: Path, undisturbed: Any) -> None:
    twice = start_program(PROGRAM, str(tmp_path / "twice"), "twice:forward")
    once = start_program(PROGRAM, str(tmp_path / "once"), "backward")
    wait_for([once, twice], 143)
    assert CheckpointStore(tmp_path / "once" / "checkpoints").steps() == [4]
    assert CheckpointStore(tmp_path / "twice" / "checkpoints").steps() == [], "the second signal must end it at once"
    wait_for([start_program(PROGRAM, str(tmp_path / "once"))])
    assert_equal(end_of(tmp_path / "once"), undisturbed)


def test_a_signal_from_outside_at_some_moment(tmp_path: Path, undisturbed: Any) -> None:
    process = start_program(PROGRAM, str(tmp_path))
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    wait_for([process], 143)
    run(tmp_path, Moments(""), RUNTIME)
    assert_equal(end_of(tmp_path), undisturbed)


def test_one_signalled_rank_ends_both(tmp_path: Path) -> None:
    wait_for(start_ranks(PROGRAM, 2, str(tmp_path), "backward"), 143)
    # Two ranks have one micro-batch a step each, so the signal comes in step 7.
    assert CheckpointStore(tmp_path / "checkpoints").steps()[-1] == 7


def test_handlers_are_restored_and_late_signals_passed_on() -> None:
    before = [signal.getsignal(number) for number in CAUGHT_SIGNALS]
    with catch_signals() as caught:
        assert signal.getsignal(signal.SIGTERM) is not before[0]
        assert caught.signal_number == 0
    assert [signal.getsignal(number) for number in CAUGHT_SIGNALS] == before
    with pytest.raises(KeyboardInterrupt), catch_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught.signal_number == signal.SIGINT
    assert [signal.getsignal(number) for number in CAUGHT_SIGNALS] == before


def test_off_the_main_thread_nothing_is_caught() -> None:
    seen: list[Any] = []

    def work() -> None:
        with catch_signals() as caught:
            seen.append((caught.signal_number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, signal.getsignal(signal.SIGTERM))]


def test_message_says_how_to_go_on() -> None:
    assert str(Interrupted(signal.SIGTERM, 7)) == "ended by SIGTERM after step 7; `trivium resume` goes on from there"
