"""From nothing to a trained, measured language model, in the time asked for: a list of stages for each kind of model.

It begins with the plan of the largest stage, pretraining: what cannot fit is refused before anything is written. Then
come the stages, each of which reads what earlier ones left in `Quickstart` and adds its own rows to the table that is
printed at the end. Everything lies under one directory: `tokenizer/`, and a run directory for each stage that trains
(`pretrain/`, then `instruct/` for a decoder, `classify/` for an encoder, `summaries/` for an encoder-decoder); at the
end `int8/`, the pretrained model in 8 bits.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, get_args

from trivium.errors import UserError, nearest
from trivium.files import is_vacant, write_atomically
from trivium.models.config import Kind
from trivium.progress import SILENT, Progress, short_time
from trivium.quickstart.classifier import learn_packages
from trivium.quickstart.fewer_bits import pack
from trivium.quickstart.instructions import learn_instructions
from trivium.quickstart.pretraining import choose_size, choose_steps, learn_language, learn_tokenizer, tell_plan
from trivium.quickstart.state import Quickstart, Stage
from trivium.quickstart.summaries import learn_summaries

ORDERS = "quickstart.json"

FIRST_STAGES = [
    Stage("tokenizer", learn_tokenizer),
    Stage("steps", choose_steps),
    Stage("plan", tell_plan),
    Stage("pretrain", learn_language),
]
LAST_STAGES = [Stage("int8", pack)]
STAGES: dict[Kind, list[Stage]] = {
    "decoder": [*FIRST_STAGES, Stage("instruct", learn_instructions), *LAST_STAGES],
    "encoder": [*FIRST_STAGES, Stage("classify", learn_packages), *LAST_STAGES],
    "encoder-decoder": [*FIRST_STAGES, Stage("summaries", learn_summaries), *LAST_STAGES],
}


def quickstart(
    out: str | Path,
    minutes: float = 5.0,
    family: str = "decoder",
    progress: Progress = SILENT,
    *,
    ignore_plan: bool = False,
) -> dict[str, Any]:
    """Run all stages; returns their results, the table for people, and the commands to try next.

    Given again with the same orders, it goes on where it stopped. Raises UserError when `out` holds something else.
    """
    out = Path(out)
    kind: Kind | None = next((known for known in get_args(Kind) if known == family), None)
    if kind is None:
        near = nearest(family, STAGES)
        cure = f"did you mean {near}?" if near else f"choose {', '.join(STAGES)}"
        raise UserError(f"--family {family}: there is no such kind of model; {cure}")
    if not 0.2 <= minutes <= 7 * 24 * 60:
        raise UserError(f"--minutes {minutes:g}: give between 0.2 minutes and a week")
    orders = {"family": family, "minutes": minutes}
    refuse_other(out, orders)
    state = Quickstart(out, minutes, kind, progress, time.perf_counter(), ignore_plan=ignore_plan)
    choose_size(state)
    write_atomically(out / ORDERS, json.dumps(orders) + "\n")
    for stage in STAGES[kind]:
        stage.work(state)
    seconds = time.perf_counter() - state.began
    state.table["time"] = f"{short_time(seconds)} of {short_time(60 * minutes)}"
    summary = state.summary
    return {
        "family": family,
        **{key: summary[key] for key in ("run", "model", "report", "steps", "final_loss")},
        **{key: summary[key] for key in ("tokens_per_second", "peak_bytes", "planned_peak_bytes")},
        "held_out": summary["held_out"],
        "baselines": summary.get("baselines", {}),
        "samples": summary["samples"],
        **state.results,
        "seconds": seconds,
        "table": state.table,
        "next": state.next,
    }


def refuse_other(out: Path, orders: dict[str, Any]) -> None:
    """UserError unless `out` is empty, or a quickstart's directory with the same orders."""
    file = out / ORDERS
    if file.is_file():
        try:
            theirs = dict(json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{file} is damaged: delete {out}, or choose another --out") from None
        if theirs != orders:
            raise UserError(
                f"{out} holds a quickstart of {theirs.get('minutes')} minutes for --family {theirs.get('family')}, not "
                f"of {orders['minutes']:g} for {orders['family']}: give the same to go on with it, choose another "
                f"--out, or delete {out}"
            )
    elif not is_vacant(out):
        raise UserError(f"{out} is not empty and holds no quickstart: choose another --out")
