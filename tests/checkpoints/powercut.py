"""What a disk may hold after a power cut: a model, made from the recorded calls of a save (ALICE's method, OSDI 2014).

POSIX promises only this: what was written to a file before an `fsync` of it is on the disk after it, and what was done
to a directory's entries before an `fsync` of that directory likewise. Everything else may be there or not, in any
combination; data not yet flushed may be missing, cut short, or zeros of the right length. A rename within one directory
is one change. The model draws such states, builds each as a real directory, and the store must open it.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints.tracing import Call

Node = int
STRING = r'"(?:[^"\\]|\\.)*"'


@dataclass
class Change:
    """One thing a call did to one node: bytes appended to a file, or entries set (None: removed) in a directory."""

    node: Node
    data: bytes = b""
    entries: dict[str, Node | None] = field(default_factory=dict)
    flushed_at: int | None = None
    """The number of changes made when this one was flushed (None: never)."""


class Disk:
    """Replays recorded calls below `root`, and remembers each change and when it was made durable."""

    def __init__(self, root: Path) -> None:
        """Everything that is below `root` now is on the disk already."""
        self.directories: dict[Node, dict[str, Node]] = {}
        self.files: dict[Node, bytes] = {}
        self.changes: list[Change] = []
        self._nodes = 0
        self._now: dict[str, Node] = {}
        self._top = self._take(root)

    def _take(self, path: Path) -> Node:
        self._nodes += 1
        node = self._nodes
        self._now[str(path)] = node
        if path.is_dir():
            self.directories[node] = {}
            self.directories[node] = {child.name: self._take(child) for child in sorted(path.iterdir())}
        else:
            self.files[node] = path.read_bytes()
        return node

    def replay(self, calls: list[Call]) -> None:
        """Take in the calls of a save."""
        for call in calls:
            paths = [ast.literal_eval(text) for text in re.findall(STRING, call.arguments)]
            match call.name:
                case "mkdir":
                    self._make(paths[0], directory=True)
                case "openat":
                    self._make(paths[0], directory=False)
                case "write":
                    path, text = re.match(rf"\d+<(.*?)>, ({STRING})(\.\.\.)?, \d+$", call.arguments).groups()[:2]
                    data = ast.literal_eval("b" + text)
                    assert len(data) == int(call.result), "the trace cut the data short"
                    self.changes.append(Change(self._now[path], data=data))
                case "fsync":
                    self._flush(self._now[re.match(r"\d+<(.*)>$", call.arguments)[1]])
                case "rename":
                    self._rename(*paths)
                case "unlinkat":
                    self._remove(f"{re.match(r'[^<]*<(.*?)>', call.arguments)[1]}/{paths[0]}")
                case "unlink" | "rmdir":
                    self._remove(paths[0])
                case other:
                    raise AssertionError(f"the model does not know {other}")

    def _make(self, path: str, directory: bool) -> None:
        self._nodes += 1
        (self.directories if directory else self.files)[self._nodes] = {} if directory else b""
        self._now[path] = self._nodes
        self._enter(path, self._nodes)

    def _rename(self, old: str, new: str) -> None:
        assert Path(old).parent == Path(new).parent, "the model knows renames within one directory"
        node = self._now[old]
        moved = {p: n for p, n in self._now.items() if p == old or p.startswith(old + "/")}
        for path, inner in moved.items():
            del self._now[path]
            self._now[new + path[len(old) :]] = inner
        entries = {Path(old).name: None, Path(new).name: node}
        self.changes.append(Change(self._now[str(Path(old).parent)], entries=entries))

    def _remove(self, path: str) -> None:
        del self._now[path]
        self._enter(path, None)

    def _enter(self, path: str, node: Node | None) -> None:
        self.changes.append(Change(self._now[str(Path(path).parent)], entries={Path(path).name: node}))

    def _flush(self, node: Node) -> None:
        for change in self.changes:
            if change.node == node and change.flushed_at is None:
                change.flushed_at = len(self.changes)

    def states(self, count: int, rng: random.Random) -> Iterator[dict[str, bytes]]:
        """`count` possible disks ({path: bytes}, a directory's path ends in /): power is cut at each moment in turn,
        and everything that may be lost is lost the first time round, a random part of it later."""
        moments = range(len(self.changes) + 1)
        for number in range(count):
            survival = 0.0 if number < len(moments) else rng.choice([0.2, 0.5, 0.8])
            yield self._state(moments[number % len(moments)], False, rng, survival)

    def states_after(self, count: int, rng: random.Random) -> Iterator[dict[str, bytes]]:
        """The same for a power cut after the save has returned."""
        for number in range(count):
            yield self._state(len(self.changes), True, rng, 0.5 if number else 0.0)

    def _state(self, moment: int, returned: bool, rng: random.Random, survival: float) -> dict[str, bytes]:
        directories = {node: dict(entries) for node, entries in self.directories.items()}
        files = dict(self.files)
        for change in self.changes[:moment]:
            flushed = change.flushed_at is not None and (returned or change.flushed_at < moment)
            if flushed or rng.random() < survival:
                files[change.node] = files.get(change.node, b"") + change.data
                for name, node in change.entries.items():
                    directories[change.node].pop(name, None)
                    if node is not None:
                        directories[change.node][name] = node
            elif survival and change.data and rng.random() < 0.5:
                files[change.node] += rng.choice([change.data[: len(change.data) // 2], bytes(len(change.data))])
        return dict(self._walk(self._top, "", directories, files))

    def _walk(
        self, node: Node, path: str, directories: dict[Node, dict[str, Node]], files: dict[Node, bytes]
    ) -> Iterator[tuple[str, bytes]]:
        if node not in directories:
            yield path, files[node]
            return
        yield f"{path}/", b""
        for name, child in directories[node].items():
            yield from self._walk(child, f"{path}/{name}", directories, files)


def build(state: dict[str, bytes], directory: Path) -> None:
    """Make a state a real directory."""
    for name, data in state.items():
        path = directory / name.strip("/")
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(data)
