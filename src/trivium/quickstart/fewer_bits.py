"""The last stage: the pretrained model in 8 bits, and what that costs, measured on the held-out text.

The figures (`report/compression.py`) are kept beside the packed model, shown in the table, and added to the
pretraining run's summary and report.
"""

from __future__ import annotations

import json
import math
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

from trivium.checkpoints.bundle import load, quantize
from trivium.data.prepare import held_out_texts
from trivium.progress import short_bytes
from trivium.quickstart.state import TRIED, Quickstart
from trivium.report.compression import compression_report, compression_table
from trivium.report.page import write_report
from trivium.training.run_directory import SUMMARY, write_summary

FORMAT = "int8"
COST = "quantization.json"
# So much is measured: enough for an interval, and a few seconds for models of these sizes.
WINDOWS, PROMPTS = 32, 4
# A shorter context has no room for a prompt and what is written after it.
LEAST_CONTEXT = 64
DOCUMENTS = 40


def pack(state: Quickstart) -> None:
    """Write the model in 8 bits with what it costs, unless it is there, and say that."""
    folder = state.out / FORMAT
    if not (folder / COST).is_file():
        measure_and_save(Path(state.summary["model"]), folder, state)
    cost = json.loads((folder / COST).read_text())
    state.summary["compression"] = cost
    run = Path(state.summary["run"])
    write_summary(run / SUMMARY, state.summary)
    write_report(run)
    state.results["int8"] = {"model": str(folder), **cost}
    state.table |= rows(cost, state.summary)
    state.next.append(TRIED[state.kind].format(shlex.quote(str(folder))))


def measure_and_save(model: Path, folder: Path, state: Quickstart) -> None:
    """Pack the model in `model`, compare the two, and write `folder` as a whole, figures included."""
    state.progress.note(f"packing the model in 8 bits and measuring what that costs: {folder}")
    original = load(model)
    packed = quantize(original, FORMAT)
    text = list(islice(held_out_texts(state.data), DOCUMENTS))
    length = state.data.sequence_length
    prompts = PROMPTS if length >= LEAST_CONTEXT else 0
    report = compression_report(original, packed, text, windows=WINDOWS, window_tokens=length, prompts=prompts)
    cost = {**report, "table": compression_table(report)}
    packed.save(folder, extra_files={COST: json.dumps(cost, indent=2) + "\n"})


def rows(cost: dict[str, Any], summary: dict[str, Any]) -> dict[str, str]:
    """The cost as rows of the table."""
    size, quality = cost["bytes"], cost["quality"]
    ends = quality["perplexity_interval"]
    interval = "" if ends is None else f" (95 %: {ends[0]:+.2%} to {ends[1]:+.2%})"
    change = f"{quality['perplexity_change']:+.2%}{interval}, {quality['agreement']:.1%} the same likeliest token"
    found = {
        "int8 model": f"{short_bytes(size['quantized'])} in memory instead of {short_bytes(size['original'])}",
        f"  {quality['measure']}": change,
    }
    facts = summary.get("tokenizer_facts") or {}
    if summary["model_facts"]["kind"] == "decoder" and "bytes_per_token" in facts:
        before, after = (
            quality["nll"][which] / math.log(2) / facts["bytes_per_token"] for which in ("original", "quantized")
        )
        found["  bits per byte"] = f"{after:.4f} instead of {before:.4f} on {quality['tokens']:,} held-out tokens"
    for name, speed in (cost["speed"] or {}).items():
        ratio = speed["quantized"] / speed["original"]
        found[f"  {name}"] = f"{speed['quantized']:,.0f} tokens/s instead of {speed['original']:,.0f} ({ratio:.2f} x)"
    return found
