"""The run store: what is saved comes back bit for bit, and damage is found, named and survived (row R4)."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints.samples import sample, which
from trivium.checkpoints import manifest
from trivium.checkpoints.manifest import Damaged, encode_manifest, write_file
from trivium.checkpoints.store import CheckpointStore, required_bytes
from trivium.checkpoints.tensors import parse
from trivium.errors import UserError

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def filled(directory: Path, *steps: int, keep: int = 9) -> CheckpointStore:
    """A store with the samples of these steps; what it says is in `store.notes`."""
    notes: list[str] = []
    store = CheckpointStore(directory, keep, notes.append)
    store.notes = notes  # type: ignore[attr-defined]
    for step in steps:
        store.save(step, *sample(step))
    return store


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Saving and loading


def test_tensors_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 7)).sum().backward()
    optimizer.step()
    moments = {f"{n}.{k}": v for n, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    tensors = {"model": model.state_dict(), "optimizer": moments, "rng": {"cpu": torch.get_rng_state()}}
    path = CheckpointStore(tmp_path / "run" / "checkpoints").save(5, tensors, {"step": 5, "loss": float("nan")})
    loaded = CheckpointStore(tmp_path / "run" / "checkpoints").load_latest()
    assert loaded is not None and (loaded.step, loaded.path) == (5, path) and loaded.path.name == "step-5"
    assert loaded.state["step"] == 5 and loaded.state["loss"] != loaded.state["loss"]
    for stem, named in tensors.items():
        assert loaded.tensors[stem].keys() == named.keys()
        for name, tensor in named.items():
            back = loaded.tensors[stem][name]
            assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape) and torch.equal(back, tensor), name
    assert names(path) == sorted([*FILES, "rng.safetensors"])


def test_an_empty_or_absent_store(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.load_latest() is None and store.steps() == [] and not store.directory.exists()
    with pytest.raises(UserError, match="has no checkpoint of step 3; it has none"):
        store.load(3)
    store.clean()
    store.save(0, {}, {})
    assert store.load(0).tensors == {} and store.steps() == [0]


def test_steps_are_ordered_as_numbers_and_foreign_names_left_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, 10, 9, 100)
    for foreign in ("step-1x", "step-007", "notes", ".tmp-model-1"):
        (tmp_path / foreign).mkdir()
    store.clean()
    assert store.steps() == [9, 10, 100]
    assert {"step-1x", "step-007", "notes", ".tmp-model-1"} <= set(names(tmp_path))
    with pytest.raises(UserError, match=r"has no checkpoint of step 7; it has \[9, 10, 100\]"):
        store.load(7)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "s")
    for tensors, state, step, error in [
        ({"model": {"w": torch.eye(2).to_sparse()}}, {}, 1, TypeError),
        ({"model": {}}, {"x": object()}, 1, TypeError),
        ({"../model": {}}, {}, 1, ValueError),
        ({"model": {}}, {}, -1, ValueError),
    ]:
        with pytest.raises(error):
            store.save(step, tensors, state)
    with pytest.raises(UserError, match="keep must be at least 1"):
        CheckpointStore(tmp_path, keep=0)
    assert not store.directory.exists()


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2)
    (tmp_path / ".tmp-step-3-dead").mkdir()
    (tmp_path / "step-2" / "state.json").unlink()
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    store.steps()
    assert which(CheckpointStore(tmp_path).load_latest()) == (1, 1)
    with pytest.raises(UserError):
        store.load(2)
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_was_loaded_does_not_hang_on_the_files(tmp_path: Path) -> None:
    """safetensors' memory-mapped readers saw zeros when a file was rewritten under them; here nothing is mapped."""
    loaded = filled(tmp_path, 1).load(1)
    for path in loaded.path.iterdir():
        os.truncate(path, 0)
    assert which(loaded) == (1, 1)


def peak_bytes() -> int:
    """The highest resident memory of this process since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
def test_a_save_copies_at_most_one_tensor_at_a_time(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    weights = {f"w{n}": torch.full((2048, 1024), float(n)).T for n in range(12)}  # 8 MiB each, not contiguous
    store.save(1, {"model": weights}, {})  # warms the allocator up
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    store.save(2, {"model": weights}, {})
    assert peak_bytes() - before < 32 << 20  # one is 8 MiB, a chunk 4; all of them would be 96


# Rotation and replacement


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 3, keep=2)
    assert names(tmp_path) == ["step-2", "step-3"] and store.notes == []
    assert [which(store.load(step)) for step in (2, 3)] == [(2, 2), (3, 3)]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    store.save(1, *sample(99))
    assert which(store.load(1)) == (1, 99) and names(tmp_path) == ["step-1"]


def test_rotation_never_deletes_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """keep=1, and the disk spoils the new checkpoint as it is written: the old one must stay."""
    store = filled(tmp_path, 1, keep=1)

    def spoiling(path: Path, pieces: list[bytes]) -> manifest.Entry:
        entry = write_file(path, pieces)
        if path.name == "model.safetensors":
            flip(path, 4000)
        return entry

    monkeypatch.setattr("trivium.checkpoints.store.write_file", spoiling)
    for step in (2, 1):
        with pytest.raises(UserError, match=r"does not read back: model\.safetensors .*nothing older was deleted"):
            store.save(step, *sample(22))
        assert which(CheckpointStore(tmp_path).load_latest()) == (1, 1)
    monkeypatch.undo()
    store.save(3, *sample(3))
    assert names(tmp_path) == ["step-3"]


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    filled(tmp_path, 100, 200)
    flip(tmp_path / "step-200" / "model.safetensors", 4000)
    store = filled(tmp_path, keep=2)
    assert which(store.load_latest()) == (100, 100)
    store.save(150, *sample(150))
    assert store.steps() == [100, 150, 200], "two good ones stay"
    store.save(200, *sample(200))
    assert store.steps() == [150, 200] and which(store.load(200)) == (200, 200)


def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1, keep=1)

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    store.save(2, *sample(2))
    assert len(store.notes) == 1 and "could not be deleted: Operation not permitted" in store.notes[0]
    monkeypatch.undo()
    store.save(3, *sample(3))
    assert names(tmp_path) == ["step-3"]


# Space


def test_required_bytes_are_what_a_checkpoint_takes(tmp_path: Path) -> None:
    tensors, state = sample(1)
    path = CheckpointStore(tmp_path).save(1, tensors, state)
    held = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert held < required_bytes(tensors) < held + 100_000


def test_a_run_that_cannot_fit_is_refused_at_its_first_step(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    tensors = {"model": {"w": torch.empty(free // 3 + (64 << 20), dtype=torch.uint8, device="meta")}}
    CheckpointStore(tmp_path / "not" / "yet", keep=1).require_space(tensors)
    with pytest.raises(
        UserError, match=r"not enough space in .*: 3 checkpoints need .* each\), .* are free; free some"
    ):
        CheckpointStore(tmp_path / "not" / "yet", keep=2).require_space(tensors)
    assert names(tmp_path) == []


# R4: damage


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def zero_page(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    at = rng.randrange(0, len(data), 4096)
    path.write_bytes(data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :])


def swap(one: Path, two: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "bit flip": lambda path, rng: flip(path, rng.randrange(path.stat().st_size * 8)),
    "truncation": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)),
    "zeroed page": zero_page,
    "swapped between checkpoints": lambda path, rng: swap(path, path.parents[1] / "step-2" / path.name),
    "deleted file": lambda path, rng: path.unlink(),
    "extra byte": lambda path, rng: path.write_bytes(path.read_bytes() + rng.randbytes(1)),
}


def undetected(folder: Path, count: int) -> list[str]:
    """Damage the newest of three checkpoints `count` times (a swap damages two): which damages went wrong, and how."""
    filled(folder / "good", 1, 2, 3)
    rng, wrong = random.Random(4), []
    for number in range(count):
        kind = list(DAMAGES)[number % len(DAMAGES)]
        name = rng.choice(FILES)
        shutil.rmtree(folder / "s", ignore_errors=True)
        shutil.copytree(folder / "good", folder / "s")
        DAMAGES[kind](folder / "s" / "step-3" / name, rng)
        store = filled(folder / "s")
        what = f"{number}: {kind} of {name}"
        try:
            store.load(3)
            wrong.append(f"{what}: not detected")
        except UserError as error:
            if f"step-3 is damaged: {name} " not in str(error):
                wrong.append(f"{what}: not named: {error}")
        expected = 1 if "swapped" in kind else 2
        try:
            assert which(store.load_latest()) == (expected, expected), "the previous good one was not taken"
        except AssertionError as error:
            wrong.append(f"{what}: {error}")
            continue
        if len(store.notes) != 3 - expected or f"step-3 is damaged: {name} " not in store.notes[0]:
            wrong.append(f"{what}: not told so: {store.notes}")
    return wrong


def test_every_damage_is_detected_named_and_survived(tmp_path: Path) -> None:
    assert undetected(tmp_path, 300) == []


def test_the_damage_check_turns_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken controls: no manifest check at all, and one that compares only sizes."""

    def unchecked(directory: int, name: str, entry: manifest.Entry, keep: bool = True) -> memoryview:
        with manifest._file(directory, name) as descriptor:
            return memoryview(bytearray(os.read(descriptor, 1 << 20)))

    def only_sizes(directory: int, name: str, entry: manifest.Entry, keep: bool = True) -> memoryview:
        data = unchecked(directory, name, entry)
        if len(data) != entry.bytes:
            raise Damaged(name, f"has {len(data)} bytes")
        return data

    for mutant, kinds in [(unchecked, {"bit flip", "zeroed page", "swapped"}), (only_sizes, {"bit flip", "swapped"})]:
        monkeypatch.setattr(manifest, "_read", mutant)
        wrong = Counter(kind for text in undetected(tmp_path / mutant.__name__, 60) for kind in kinds if kind in text)
        assert kinds <= wrong.keys(), wrong


def test_when_none_is_good_the_user_is_told_all_of_it(tmp_path: Path) -> None:
    """A directory without a manifest is not a checkpoint, and starting over silently would be worse than stopping."""
    store = filled(tmp_path, 1, 2)
    (tmp_path / "step-1" / "manifest.json").unlink()
    flip(tmp_path / "step-2" / "state.json", 100)
    with pytest.raises(UserError, match=r"no good checkpoint in .*step-2 .*state\.json.*step-1 .*manifest\.json is m"):
        store.load_latest()


def test_manifests_that_lie(tmp_path: Path) -> None:
    """A manifest with a right checksum and wrong contents: refused by name, and nothing outside is opened."""
    store = filled(tmp_path, 1)
    path = tmp_path / "step-1" / "manifest.json"
    real = path.read_bytes()
    entries = manifest.decode_manifest(real, 1)
    outside = {"../../secret": entries["state.json"]}
    lies = [
        (encode_manifest(2, entries), "manifest.json belongs to step 2"),
        (encode_manifest(1, outside), "manifest.json names a file outside"),
        (encode_manifest(1, {}), "manifest.json does not list state.json"),
        (encode_manifest(1, entries | {"state.json": manifest.Entry("0" * 64, 1 << 60)}), "state.json has"),
        (encode_manifest(1, entries | {"state.json": entries["model.safetensors"]}), "state.json has"),
        (real + b" ", "manifest.json does not match its own checksum"),
        (b"[]", "manifest.json does not match"),
        (b"[" * 100_000, "manifest.json does not match"),
        (b"", "manifest.json does not match"),
    ]
    for data, message in lies:
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            store.load(1)
    monkey = real.replace(b'"format": 1', b'"format": 2')
    assert monkey != real
    path.write_bytes(monkey)
    with pytest.raises(UserError, match="does not match its own checksum"):
        store.load(1)


def test_files_that_are_not_files(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2)
    (tmp_path / "step-2" / "state.json").unlink()
    os.mkfifo(tmp_path / "step-2" / "state.json")
    with pytest.raises(UserError, match=r"state\.json is not a regular file"):
        store.load(2)
    shutil.rmtree(tmp_path / "step-2")
    (tmp_path / "step-2").write_text("a file")
    assert which(store.load_latest()) == (1, 1) and "step-2 is damaged" in store.notes[-1]


def test_verified_bytes_that_are_no_safetensors_file_are_named(tmp_path: Path) -> None:
    """Hashes that fit (a writer with a bug, or a forger) still do not let nonsense through."""
    store = filled(tmp_path, 1)
    path = tmp_path / "step-1"
    (path / "model.safetensors").unlink()
    entries = manifest.decode_manifest((path / "manifest.json").read_bytes(), 1)
    entries["model.safetensors"] = write_file(path / "model.safetensors", [b"nonsense" * 9])
    (path / "manifest.json").write_bytes(encode_manifest(1, entries))
    with pytest.raises(UserError, match=r"model\.safetensors is not what its name says"):
        store.load(1)
    with pytest.raises(ValueError):
        parse(memoryview(b"nonsense" * 9))


def test_too_many_open_files_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling back to an older step because of a passing shortage would silently lose work."""
    store = filled(tmp_path, 1, 2)
    real = os.open

    def short(path: object, *arguments: object, **more: object) -> int:
        if path == "model.safetensors":
            raise OSError(24, "Too many open files")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", short)
    with pytest.raises(UserError, match=r"step-2: model\.safetensors could not be read: Too many open files"):
        store.load_latest()
    assert store.notes == []
