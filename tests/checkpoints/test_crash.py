"""Rows R1, R2, R3 and R5 of the reliability contract, on the run store: kills, power cuts and I/O errors.

Each check is a function that lists what went wrong; each is run once on the store as it is (nothing may go wrong) and
once or more on a store with a seeded bug (something must).
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkpoints.killing import differences, kill_and_resume
from checkpoints.powercut import Disk, build
from checkpoints.samples import sample, which
from checkpoints.tracing import Call, failed_at, killed_at, order, record, run, why_not
from trivium.checkpoints.store import CheckpointStore
from trivium.errors import UserError

OLD, NEW, NEXT = (1, 11), (2, 22), (3, 33)
AGAIN = (1, 12)
TOY = Path(__file__).parent / "programs" / "toy_trainer.py"

needs_strace = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def start(directory: Path, scenario: str) -> list[tuple[int, int]]:
    """Make the store in which a scenario begins; returns the (step, seed) it may open to before the save."""
    shutil.rmtree(directory.parent, ignore_errors=True)
    if scenario == "first save":
        return []
    CheckpointStore(directory).save(OLD[0], *sample(OLD[1]))
    if scenario == "after a kill between the renames":
        (directory / "step-1").rename(directory / "step-1.old")
    if scenario == "after a kill behind the renames":
        (directory / "step-1").rename(directory / "step-1.old")
        shutil.copytree(directory / "step-1.old", directory / "step-1")
    return [OLD]


SCENARIOS = {
    "first save": NEW,
    "save and rotate": NEW,
    "same step again": AGAIN,
    "after a kill between the renames": AGAIN,
    "after a kill behind the renames": NEW,
}


def seen_by_a_reader(directory: Path) -> list[tuple[int, int] | str]:
    """What a resuming run would take, then every step there is; in words where it is not a good one."""
    notes: list[str] = []
    store = CheckpointStore(directory, note=notes.append)
    before = sorted(directory.rglob("*")) if directory.exists() else []
    seen: list[tuple[int, int] | str] = []
    try:
        newest = store.load_latest()
        seen = [] if newest is None else [which(newest)]
        seen += [which(store.load(step)) for step in store.steps()]
    except (UserError, AssertionError) as error:
        seen.append(str(error))
    assert before == (sorted(directory.rglob("*")) if directory.exists() else []), "a reader changed something"
    return seen + notes


def save_next(directory: Path) -> list[str]:
    """Save once more, and list what is there that should not be."""
    CheckpointStore(directory, keep=1).save(NEXT[0], *sample(NEXT[1]))
    wrong = [f"left behind: {path.name}" for path in directory.iterdir() if path.name != "step-3"]
    return wrong if which(CheckpointStore(directory).load(NEXT[0])) == NEXT else [*wrong, "the next save is not right"]


# R2: every crash point of a save


def every_kill(
    folder: Path, scenario: str, mutant: str | None = None, first_red_is_enough: bool = False
) -> tuple[list[Call], list[str]]:
    """Kill the save at every file-changing call it makes: (the calls, what went wrong)."""
    directory, target = folder / "run" / "checkpoints", SCENARIOS[scenario]
    argument = order(directory, [target], mutants=[mutant] if mutant else [])
    start(directory, scenario)
    calls, wrong = record(argument, folder / "trace"), []
    for call in calls:
        allowed = start(directory, scenario)
        killed_at(argument, call)
        seen = seen_by_a_reader(directory)
        if not (seen or scenario == "first save") or any(one not in [*allowed, target] for one in seen):
            wrong.append(f"{scenario}, killed at {call.name} {call.nth} ({call.arguments[-80:]}): {seen}")
        if not mutant:
            wrong += save_next(directory)
        if wrong and first_red_is_enough:
            break
    return calls, wrong


@needs_strace
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_call_the_store_opens_to_old_or_new(tmp_path: Path, scenario: str) -> None:
    calls, wrong = every_kill(tmp_path, scenario)
    assert wrong == []
    counts = Counter(call.name for call in calls)
    print(f"{scenario}: {len(calls)} kills, {dict(counts)}")
    assert counts["write"] == 9 and counts["fsync"] >= 6 and counts["rename"] >= 1 and counts["mkdir"] >= 1
    assert counts["openat"] == 4, "four files are created"
    assert counts["unlinkat"] == (0 if scenario == "first save" else 8 if "behind" in scenario else 4)


@needs_strace
@pytest.mark.parametrize(
    ("mutant", "scenario"),
    [
        ("rotate_first", "save and rotate"),
        ("manifest_last", "first save"),
        ("write_in_place", "save and rotate"),
        ("delete_in_place", "save and rotate"),
        ("replace_by_deleting", "same step again"),
    ],
)
def test_the_kill_check_turns_red(tmp_path: Path, mutant: str, scenario: str) -> None:
    """Broken controls."""
    assert every_kill(tmp_path, scenario, mutant, first_red_is_enough=mutant != "delete_in_place")[1]


# R3: power cuts, in a model


def every_power_cut(folder: Path, scenario: str, count: int, mutant: str | None = None) -> list[str]:
    """Draw disks that a power cut during (or after) the save may leave: what goes wrong when they are opened."""
    root, rng, wrong = folder / "disk", random.Random(5), []
    directory, target = root / "run" / "checkpoints", SCENARIOS[scenario]
    root.mkdir()
    allowed = start(directory, scenario)
    disk = Disk(root)
    disk.replay(record(order(directory, [target], mutants=[mutant] if mutant else []), folder / "trace"))
    after = count // 4
    for number, state in enumerate([*disk.states(count - after, rng), *disk.states_after(after, rng)]):
        image = folder / f"image-{number}"
        build(state, image)
        seen = seen_by_a_reader(image / "run" / "checkpoints")
        returned = number >= count - after
        fine = [target] if returned else [*allowed, target]
        if not (seen or (scenario == "first save" and not returned)) or any(one not in fine for one in seen):
            wrong.append(f"{scenario}, state {number}: {seen}")
        shutil.rmtree(image)
    return wrong


@needs_strace
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_after_a_power_cut_the_store_opens_to_old_or_new(tmp_path: Path, scenario: str) -> None:
    assert every_power_cut(tmp_path, scenario, count=140) == []


@needs_strace
@pytest.mark.parametrize(
    ("mutant", "scenario"),
    [
        ("no_file_sync", "save and rotate"),
        ("no_checkpoint_directory_sync", "save and rotate"),
        ("no_store_directory_sync", "save and rotate"),
        ("no_store_directory_sync", "first save"),
    ],
)
def test_the_power_cut_check_turns_red(tmp_path: Path, mutant: str, scenario: str) -> None:
    """Broken controls: a store that forgets one kind of flush passes every kill, and must fail here."""
    assert every_power_cut(tmp_path, scenario, count=140, mutant=mutant)


def test_empty_files_in_the_two_newest_checkpoints(tmp_path: Path) -> None:
    """A power cut seen in the wild: the two newest directories hold files of 0 bytes; the third is used."""
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2, 3):
        store.save(step, *sample(step))
    for path in [*(tmp_path / "step-2").iterdir(), *(tmp_path / "step-3").iterdir()]:
        path.write_bytes(b"")
    newest = CheckpointStore(tmp_path).load_latest()
    assert newest is not None and which(newest) == (1, 1)


# R5: I/O errors

ERRORS = {
    "write": ["ENOSPC", "EIO", "EDQUOT"],
    "fsync": ["ENOSPC", "EIO", "EDQUOT"],
    "openat": ["EMFILE", "ENOSPC", "EIO", "EDQUOT"],
    "mkdir": ["ENOSPC", "EIO", "EDQUOT"],
    "rename": ["ENOSPC", "EIO", "EDQUOT"],
    "unlinkat": ["EIO"],
    "rmdir": ["EIO"],
}


def one_error(folder: Path, scenario: str, call: Call, errno_name: str, forever: bool) -> list[str]:
    """Let one call of a save fail, then (unless the failure is to stay) save again in the same process."""
    directory, target = folder / "run" / "checkpoints", SCENARIOS[scenario]
    allowed = start(directory, scenario)
    saves = [target] if forever else [target, NEXT]
    done = failed_at(order(directory, saves), call, errno_name, forever)
    assert done.outcomes, "the process did not survive an error"
    first = done.outcomes[0]
    told = " ".join([first["error"] or "", *first["notes"]])
    wrong = []
    if not told or "\n" in told:
        wrong.append(f"not told in one line: {told!r}")
    if first["error"] and "ENOSPC" in errno_name and "No space left on device" not in told:
        wrong.append(f"the reason is not given: {told}")
    seen = seen_by_a_reader(directory)
    fine = [*allowed, target] if forever else [NEXT]
    if any(one not in fine for one in seen) or not (seen or scenario == "first save"):
        wrong.append(f"opens to {seen}")
    if not forever and done.outcomes[1]["error"]:
        wrong.append(f"the next save failed: {done.outcomes[1]}")
    left = [path.name for path in directory.glob(".*")] if directory.exists() else []
    if left and not (forever and call.name in ("unlinkat", "rmdir")):
        wrong.append(f"left behind: {left}")
    return [f"{scenario}, {errno_name} at {call.name} {call.nth}, forever={forever}: {text}" for text in wrong]


@needs_strace
def test_an_io_error_at_any_call_costs_nothing_but_this_save(tmp_path: Path) -> None:
    rng, kinds = random.Random(3), {}
    for scenario in ("first save", "save and rotate", "same step again"):
        start(tmp_path / "run" / "checkpoints", scenario)
        for call in record(order(tmp_path / "run" / "checkpoints", [SCENARIOS[scenario]]), tmp_path / "trace"):
            for error in ERRORS[call.name]:
                kinds.setdefault((call.name, error), []).append((scenario, call))
    chosen = [(*rng.choice(places), error, on) for (_, error), places in kinds.items() for on in (False, False, True)]
    print(f"{len(chosen)} points of {len(kinds)} kinds")
    assert len(kinds) == 18 and len(chosen) >= 40
    assert [text for point in chosen for text in one_error(tmp_path, *point)] == []


def test_a_file_size_limit_is_reported_and_survived(tmp_path: Path) -> None:
    """The same without strace: the kernel itself refuses to let a file grow."""
    CheckpointStore(tmp_path / "s").save(OLD[0], *sample(OLD[1]))
    done = run(order(tmp_path / "s", [NEW, NEXT], max_file_bytes=8000))
    assert done.outcomes
    first, second = done.outcomes
    assert "could not save" in first["error"] and "File too large" in first["error"] and second["error"] is None
    assert seen_by_a_reader(tmp_path / "s") == [NEXT, NEXT]


@contextmanager
def small_disk(place: Path, size: str):
    """A file system of its own; skips where this process may not mount one."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"may not mount a small tmpfs here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_really_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "128k") as disk:
        directory = disk / "checkpoints"
        CheckpointStore(directory).save(OLD[0], *sample(OLD[1]))
        (disk / "filler").write_bytes(bytes(60_000))
        with pytest.raises(UserError, match=r"not enough space in .* a checkpoint needs .* are free; free some"):
            CheckpointStore(directory).save(NEW[0], *sample(NEW[1]))
        (disk / "more").write_bytes(bytes(12_000))
        done = run(order(directory, [NEW], mutants=["no_space_check"]))
        assert done.outcomes
        error = done.outcomes[0]["error"]
        assert "No space left on device" in error and "a checkpoint needs" in error and "steps [1]" in error
        assert [path.name for path in directory.iterdir()] == ["step-1"]
        (disk / "filler").unlink()
        (disk / "more").unlink()
        CheckpointStore(directory, keep=1).save(NEXT[0], *sample(NEXT[1]))
        assert seen_by_a_reader(directory) == [NEXT, NEXT]


# A reader beside a writer, and R1: killed while it trains


def test_a_reader_beside_a_writer_always_finds_a_whole_checkpoint(tmp_path: Path) -> None:
    """Rotation and replacement go on while another process reads, without a false alarm."""
    directory = tmp_path / "s"
    CheckpointStore(directory).save(OLD[0], *sample(OLD[1]))
    saves = [(step, step * 10 + again) for step in range(2, 60) for again in (0, 1)]
    notes: list[str] = []
    reader, seen = CheckpointStore(directory, note=notes.append), [0]
    writer = threading.Thread(target=run, args=(order(directory, saves),))  # the saves are made in another process
    writer.start()
    while writer.is_alive():
        newest = reader.load_latest()
        assert newest is not None
        seen.append(which(newest)[0])
    assert notes == [] and seen_by_a_reader(directory) == [saves[-1]] * 2
    assert seen[1:] == sorted(seen[1:]) and len(set(seen)) > 3, "the reader saw the steps go by, in order"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    folder.mkdir()
    subprocess.run([sys.executable, TOY, folder], check=True, timeout=60)
    return folder


def test_killed_ten_times_a_run_ends_bit_identical(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    report = kill_and_resume([sys.executable, str(TOY), str(folder)], folder, 10, random.Random(1), window_s=0.05)
    print([(kill.phase, round(kill.after_s, 2), len(kill.left), kill.newest) for kill in report.kills])
    assert report.exit_code == 0 and report.complaints == [] and len(report.kills) == 10
    assert report.inside_saves >= 0.3, "the kills must hit saves, or they prove nothing"
    assert differences(undisturbed, folder) == []


def test_the_kill_harness_turns_red(tmp_path: Path, undisturbed: Path) -> None:
    """Broken control: a trainer that forgets its momentum when it resumes."""
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, str(TOY), str(folder), "forget_momentum"]
    kill_and_resume(command, folder, 1, random.Random(1), inside=1.0)
    found = differences(undisturbed, folder)
    assert "optimizer/momentum" in found and "model/weights" in found and any("metrics.jsonl" in text for text in found)
