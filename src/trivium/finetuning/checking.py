"""A pre-flight of a fine-tuning recipe: the whole run in small, and what must hold of it.

A copy of the model with the same blocks and narrow layers, freshly drawn, takes two real steps on the first rows of
each source, is saved, resumed from its first step, opened again, and writes a text. What is asserted is what goes
wrong in practice without a word: rows of which nothing is learned, a beginning of text that stands twice, an end that
is never learned, weights that get no gradient, an adapter that changes nothing, a resume that is not the same run.
Each failure comes with its cure. What the narrow copy cannot show: whether the real model fits (`trivium plan`), and
how well it learns.

Invariant its test checks: every seeded fault is found, and named by the check that is meant for it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.directory import save_model_directory
from trivium.data.batch import IGNORED, Batch
from trivium.errors import UserError
from trivium.files import sha256_of_file
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.run import TASKS, finetune
from trivium.finetuning.trained_model import tokenizer_and_config
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.peft.apply import without_adapter
from trivium.peft.settings import ADDED
from trivium.progress import SILENT, Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.run_directory import CHECKPOINTS, SUMMARY

WIDTH, HEADS, MLP_WIDTH = 64, 4, 128
ROWS_READ, ROWS_CHECKED = 64, 32
STEPS = 2
GENERAL_BYTES = 4_000


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    ok: bool
    found: str
    """What was seen, in words."""
    cure: str = ""
    """What to change where it does not hold."""


@dataclass(frozen=True)
class Report:
    """All checks that could be made."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def check_recipe(recipe: FinetuneRecipe, progress: Progress = SILENT) -> Report:
    """Make all checks; those that need what an earlier one could not do are left out."""
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="trivium-check-") as folder:
        for check in _checks(recipe, Path(folder), progress):
            progress.note(f"{'ok' if check.ok else 'FAILED'}  {check.name}: {check.found}")
            checks.append(check)
    return Report(tuple(checks))


def _checks(recipe: FinetuneRecipe, folder: Path, progress: Progress) -> Iterator[Check]:
    yield Check("every key of the recipe is read", True, "unknown keys are refused when a recipe is loaded")
    try:
        tokenizer, config = tokenizer_and_config(recipe.start_from)
        small = in_small(recipe, config, tokenizer, folder)
        task = TASKS[recipe.task.name](small, tokenizer, narrow(config), SILENT)
    except UserError as error:
        yield Check("the rows can be read", False, str(error), "mend what the message names")
        return
    if task.chat_template is not None:
        tokenizer = tokenizer.with_chat_template(task.chat_template)
    yield Check("the rows can be read", True, f"{sum(len(each.rows) for each in task.train)} rows to train on")
    yield from row_checks(task, tokenizer)
    try:
        summary = finetune(small, SILENT)
    except UserError as error:
        yield Check("two steps can be taken", False, str(error), "mend what the message names")
        return
    loss = summary["final_loss"]
    yield Check("two steps can be taken", True, f"loss {loss:.4g}; every trained weight got a gradient")
    yield from resume_check(small)
    yield from result_checks(small, summary)


def narrow(config: ModelConfig) -> ModelConfig:
    """The same blocks with narrow layers."""
    grouped = config.kv_heads < config.heads
    return ModelConfig(
        **{
            **config.model_dump(),
            "width": WIDTH,
            "heads": HEADS,
            "kv_heads": HEADS // 2 if grouped else HEADS,
            "head_width": WIDTH // HEADS,
            "mlp_width": MLP_WIDTH,
        }
    )


def in_small(recipe: FinetuneRecipe, config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> FinetuneRecipe:
    """The recipe on a narrow copy of its model, which is written into `folder`, for two steps."""
    small = narrow(config)
    model = build_model(small)
    initialise(model, small, recipe.seed)
    base = folder / "base"
    if not base.exists():
        save_model_directory(base, model, small, tokenizer)
    steps = min(STEPS, recipe.training.steps)
    data, training, task = recipe.data, recipe.training, recipe.task
    few = {"max_rows": ROWS_READ}
    return recipe.model_copy(
        update={
            "run": str(folder / "run"),
            "start_from": str(base),
            "ignore_plan": True,
            "task": task.model_copy(
                update={"generated_rows": min(2, task.generated_rows), "max_new_tokens": min(8, task.max_new_tokens)}
            ),
            "data": data.model_copy(
                update={
                    "train": tuple(source.model_copy(update=few) for source in data.train),
                    "validation": data.validation and tuple(s.model_copy(update=few) for s in data.validation),
                    "rows_per_step": min(4, data.rows_per_step),
                    "rows_per_micro_batch": min(2, data.rows_per_micro_batch),
                    "evaluation_rows": 4,
                }
            ),
            "training": training.model_copy(
                update={
                    "steps": steps,
                    "warmup_steps": 0,
                    "save_every_steps": 1,
                    "keep_checkpoints": STEPS + 1,
                    "evaluate_every_steps": 0,
                    "trackers": (),
                }
            ),
            "forgetting": recipe.forgetting.model_copy(update={"max_bytes": GENERAL_BYTES, "stop_at_loss": None}),
        }
    )


# ------------------------------------------------------------------------------------------------------------- rows


def row_checks(task: PreparedTask, tokenizer: Tokenizer) -> Iterator[Check]:
    """What must hold of the first rows of every source."""
    batches = [
        each.rows.collate([each.rows.row(number)])
        for each in task.train
        for number in range(min(ROWS_CHECKED, len(each.rows)))
    ]
    learned = [batch.num_targets for batch in batches]
    yield Check(
        "each row has something to learn",
        all(learned),
        f"{min(learned)} to {max(learned)} targets in each of {len(batches)} rows",
        "look at the rows with `trivium inspect`; raise data.sequence_length, or check which messages are learned",
    )
    if task.head != "lm":
        return
    yield _begins_once([ids for batch in batches for ids in documents(batch)], tokenizer)
    yield _end_is_learned(batches, tokenizer)


def documents(batch: Batch) -> Iterator[list[int]]:
    """The ids of each document of a batch."""
    for row, ids in enumerate(batch.ids):
        segments = torch.ones_like(ids) if batch.segments is None else batch.segments[row]
        for segment in range(1, int(segments.max()) + 1):
            yield ids[segments == segment].tolist()


def _begins_once(texts: Sequence[list[int]], tokenizer: Tokenizer) -> Check:
    name = "the beginning of text stands once"
    bos = tokenizer.bos_id
    if bos is None or bos in (tokenizer.eos_id, tokenizer.pad_id):
        return Check(name, True, "the tokenizer has no token that only begins texts")
    most = max(ids[:8].count(bos) for ids in texts)
    return Check(
        name,
        most <= 1,
        f"at most {most} at the beginning of each of {len(texts)} examples",
        "the chat template writes it, and so do the rows' texts: take it out of one of them",
    )


def _end_is_learned(batches: Sequence[Batch], tokenizer: Tokenizer) -> Check:
    ends = {tokenizer.eos_id, *([] if tokenizer.chat is None else [tokenizer.chat.end_of_turn_id])} - {None}
    targets = [set(batch.targets[batch.targets != IGNORED].tolist()) for batch in batches]
    missing = sum(not found & ends for found in targets)
    return Check(
        "the end of an answer is learned",
        bool(ends) and not missing,
        f"{len(batches) - missing} of {len(batches)} rows learn to end"
        if ends
        else "the tokenizer has no token that ends a text",
        "answers that are cut lose their ends: raise data.sequence_length; or give the tokenizer an end-of-text token, "
        "and the chat template one after each answer",
    )


# --------------------------------------------------------------------------------------------------- the run's result


def resume_check(small: FinetuneRecipe) -> Iterator[Check]:
    """The run again from its first checkpoint: the same files, to the bit."""
    run = Path(small.run)
    last = run / CHECKPOINTS / f"step-{small.training.steps}"
    if small.training.steps < STEPS:
        return
    before = result_digest(run)
    shutil.rmtree(last)
    (run / SUMMARY).unlink()
    finetune(small, SILENT)
    yield Check(
        "a resumed run is the same run",
        result_digest(run) == before,
        "resumed after the first step, it leaves the same weights, bit for bit",
        "this is a fault of the library: please report it with the recipe",
    )


def result_digest(run: Path) -> dict[str, str]:
    """The hashes of the weights that a run left."""
    return {
        str(path.relative_to(run)): sha256_of_file(path)
        for place in ("adapter", "model")
        for path in sorted((run / place).glob("*.safetensors"))
    }


def result_checks(small: FinetuneRecipe, summary: dict[str, Any]) -> Iterator[Check]:
    """The result opened again: it differs from where it began, and it can be used."""
    trained = load(summary["model"])
    changed = largest_change(trained, small)
    yield Check(
        "what was trained changes the result",
        changed > 0,
        f"logits differ from those of the model it began with by up to {changed:.3g}",
        "the method reaches nothing that the result depends on: choose other peft.targets or patterns",
    )
    with contextlib.suppress(UserError):
        if trained.config.head == "lm" and trained.config.kind != "encoder":
            text = trained.generate("Hello", max_new_tokens=4)
            yield Check("the result can write", True, f"{len(text.tokens)} tokens")


def largest_change(trained: Bundle, small: FinetuneRecipe) -> float:
    """The largest difference of a result to that of the model without what was learned."""
    ids = torch.arange(1, 9)[None] % trained.config.vocab_size
    with torch.inference_mode():
        mine = _result(trained, ids)
        if small.peft.method in ADDED:
            with without_adapter(trained.model):
                theirs = _result(trained, ids)
        else:
            other = load(small.start_from)
            if other.config.head != trained.config.head:
                return float("inf")  # a new head: nothing to compare with
            theirs = _result(other, ids)
    return float((mine - theirs).abs().max())


def _result(bundle: Bundle, ids: torch.Tensor) -> torch.Tensor:
    model: Any = bundle.model.eval()
    if isinstance(model, EncoderDecoder):
        return model(ids, ids)  # type: ignore[no-any-return]
    run: Callable[[torch.Tensor], torch.Tensor] = model.forward if isinstance(model, Decoder) else model
    return run(ids)
