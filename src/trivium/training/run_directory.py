"""The directory of a run: who owns it, what lies in it, and how a run of any stage begins and ends there.

    recipe.yaml     the resolved recipe, which reproduces the run
    metrics.jsonl   one line a step
    checkpoints/    what a killed run goes on from
    model/ adapter/ what the finished run leaves
    summary.json    the same in figures; report.html as a page

A stage brings two things, its plan and its work; claiming the directory, its lock, the words of an early end and the
way several processes leave together are the same for all. Invariants its tests check: a directory is one recipe's only;
two processes never write into one; a run that failed before it began leaves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trivium.config import Settings, build_settings, dump_recipe, load_recipe, plain
from trivium.errors import UserError
from trivium.files import is_vacant, remove_unfinished, write_atomically
from trivium.runtime import Runtime
from trivium.training.distributed import EndedElsewhere, Peers
from trivium.training.loop import NonFiniteError
from trivium.training.signals import Interrupted

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"
MODEL = "model"
ADAPTER = "adapter"
LOCK = ".lock"

R = TypeVar("R", bound=Settings)
Summary = dict[str, Any]


class RunRecipe(Protocol):
    """What every recipe of a run has."""

    @property
    def run(self) -> str:
        """Its directory."""

    @property
    def ignore_plan(self) -> bool:
        """Begin even where the plan does not fit."""

    @property
    def data(self) -> Any:
        """With `rows_per_step`."""


def recipe_of(cls: type[R], recipe: R | Mapping[str, Any] | str | Path, ignore_plan: bool = False) -> R:
    """A recipe given as settings, as a mapping or as the path of a YAML file."""
    if isinstance(recipe, str | Path):
        recipe = load_recipe(cls, Path(recipe))
    elif not isinstance(recipe, cls):
        assert isinstance(recipe, Mapping)
        recipe = build_settings(cls, recipe, "recipe")
    return recipe.model_copy(update={"ignore_plan": True}) if ignore_plan else recipe


def saved_recipe(cls: type[R], run_dir: str | Path) -> R:
    """The recipe of a run directory, which writes into where the directory is now. UserError when it is none."""
    saved = Path(run_dir) / RECIPE
    if not saved.is_file():
        raise UserError(
            f"{run_dir}: no {RECIPE} there, so this is not a run directory; start one with `trivium pretrain` or "
            "`trivium finetune`"
        )
    return load_recipe(cls, saved, [f"run={json.dumps(str(run_dir))}"])


def in_run_directory(
    recipe: RunRecipe,
    runtime: Runtime,
    *,
    state_plan: Callable[[], None],
    work: Callable[[], Summary],
    write_report: Callable[[Path], object],
) -> Summary:
    """Plan, claim the recipe's directory, work there, and say why when the work ends early."""
    assert isinstance(recipe, Settings)
    peers, directory, fresh = Peers(runtime), Path(recipe.run), False
    with contextlib.ExitStack() as held:
        with peers.together():
            state_plan()
            if runtime.is_main:
                fresh = claim(directory, recipe)
                held.enter_context(sole_writer(directory))
                remove_unfinished(directory)
        if recipe.data.rows_per_step < runtime.world_size:
            raise UserError(
                f"data.rows_per_step is {recipe.data.rows_per_step}, less than one row for each of the "
                f"{runtime.world_size} processes: raise it, or start fewer"
            )
        try:
            return work()
        except (UserError, Interrupted, EndedElsewhere) as error:
            try:
                if runtime.is_main:
                    _end_early(directory, fresh, error, write_report)
            finally:
                if isinstance(error, NonFiniteError | Interrupted):  # raised on all ranks: none leaves before
                    peers.barrier()
            raise


def _end_early(
    directory: Path,
    fresh: bool,
    error: UserError | Interrupted | EndedElsewhere,
    write_report: Callable[[Path], object],
) -> None:
    """Write down why the run ended before its time; leave nothing where it had not begun."""
    failed = not isinstance(error, Interrupted)
    why = "another process of the run failed" if isinstance(error, EndedElsewhere) else str(error)
    with contextlib.suppress(OSError):  # a full disk may be why; the reason itself is told by the error
        if fresh and failed and not (directory / METRICS).exists():
            shutil.rmtree(directory)
        elif not finished_summary(directory):
            end = {"run": str(directory), "status": "failed" if failed else "stopped", "error": why}
            write_summary(directory / SUMMARY, end)
            write_report(directory)


def finished_summary(directory: Path) -> Summary:
    """The summary of a run that has finished; empty when it has not."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        if isinstance(summary, dict) and summary.get("status") == "finished":
            return summary
    return {}


def claim(directory: Path, recipe: Settings) -> bool:
    """Make `directory` this recipe's run (True), or find that it already is (False).

    Raises UserError when it is another's.
    """
    saved = directory / RECIPE
    if saved.is_file():
        mine: Any = recipe
        theirs: Any = load_recipe(type(recipe), saved, [f"run={json.dumps(mine.run)}"])
        theirs = theirs.model_copy(update={"ignore_plan": mine.ignore_plan})  # changes nothing of what is learned
        if theirs != mine:
            names = [name for name in type(mine).model_fields if getattr(theirs, name) != getattr(mine, name)]
            raise UserError(
                f"{directory} holds a run of another recipe (it differs in: {', '.join(names)}): choose another "
                f"directory with run=..., or go on with that run by `trivium resume {directory}`"
            )
        return False
    if not is_vacant(directory):
        raise UserError(f"{directory} is not empty and holds no run: choose another directory with run=...")
    write_atomically(saved, dump_recipe(recipe))
    return True


@contextlib.contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the run's lock, which the system releases however this process ends. UserError when another holds it."""
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another process is working on this run; wait for it, or end it") from None
        yield


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """`summary.json`: the summary as JSON, numbers that are not finite as null."""
    write_atomically(path, json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
