"""What each format costs one model: size, loading, perplexity with its interval, KL, agreement, greedy text, speed.

Every format is made from the same weights and measured beside the original on the same text, which calibrated methods
have not seen. Loading (and reading a few tokens) is measured in processes of their own, the median of three. The text
is WikiText-2 and the calibration text C4 where the folder of real data sets lies beside the repository, else different
parts of Python's standard library.

Quality needs time and no quiet machine, speed the reverse: `--only quality` leaves loading and speed out, and
`--only speed --json FILE` measures these two of the formats in FILE and leaves its other figures. It rounds all
of them to nearest, since how fast codes are read does not depend on how they were found.

The weights that ship as `smollm2-135m-instruct` are 4-bit themselves (Q4_1: 16 levels in every group of 32). Rounding
them to int4_asymmetric in groups of 32 finds that very grid again and costs next to nothing, which says nothing about
other models: coarser grids (int4, groups of 128) are the test here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.process import ROOT, circumstances, peak_resident_bytes, say

if TYPE_CHECKING:
    from trivium.checkpoints.bundle import Bundle
    from trivium.quantization.calibration import Batch

# format[:group size[:method]]
FORMATS = (
    "bf16,int8,int8_dynamic,int4_asymmetric,int4,nf4,"
    "int4:128,int4:128:gptq,int4:128:awq,int4_asymmetric:128,int4_asymmetric:128:gptq,int4_asymmetric:128:awq"
)
ORIGINAL = "fp32 (original)"
DATA = ROOT.parent / "shared" / "data"
COLUMNS = (
    "format", "MB", "load, s", "peak, MB", "perplexity", "change", "95 %", "KL", "same token", "greedy equal",
    "writing, tok/s", "reading, tok/s",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write JSON and a plot where asked, and print the table."""
    options = _options(arguments)
    if options.load:
        print(json.dumps(_loaded(options.load, options.threads)))
        return
    from trivium.checkpoints.bundle import load
    from trivium.checkpoints.calibration_text import calibration_batches
    from trivium.report.compression_plots import compression_plot
    from trivium.runtime import choose_runtime, prepare_process

    prepare_process(choose_runtime("cpu", threads=options.threads))
    if options.only == "speed":
        print(table(_with_speed(options)["results"]))
        return
    original = load(options.model)
    text, name = _text(options.text)
    calibration, calibration_name = _calibration(options.calibration)
    batches = calibration_batches(original.config, original.tokenizer, calibration, options.calibration_windows)
    found: dict[str, Any] = {
        "model": options.model,
        "text": name,
        "calibration": calibration_name,
        "arguments": vars(options),
        "circumstances": circumstances(("torch",)),
        "results": [],
    }
    known: dict[str, Any] = {}
    for wanted in ("", *options.formats.split(",")):
        say(f"{wanted or 'the original'} ...")
        found["results"].append(_measured(original, wanted, text, batches, known, options))
        if options.json:  # after each, as all of them take long
            Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        Path(options.plot).write_bytes(compression_plot(*(result["report"] for result in found["results"][1:])))
    print(table(found["results"]))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_row, results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(result: dict[str, Any]) -> list[str]:
    report = result["report"]
    quality, greedy, speed = report["quality"], report["greedy"], report["speed"]
    low, high = quality["perplexity_interval"] or (0.0, 0.0)
    return [
        result["format"],
        f"{report['bytes']['quantized'] / 1e6:.0f}",
        f"{result['load_seconds']:.2f}" if speed else "",
        f"{result['load_peak_bytes'] / 1e6:.0f}" if speed else "",
        f"{quality['perplexity']['quantized']:.3f}",
        f"{quality['perplexity_change']:+.2%}",
        f"{low:+.2%} to {high:+.2%}",
        f"{quality['kl']:.2g}",
        f"{quality['agreement']:.1%}",
        f"{greedy['equal']:.0%}",
        f"{speed['writing']['quantized']:.0f}" if speed else "",
        f"{speed['reading']['quantized']:.0f}" if speed else "",
    ]


def _measured(
    original: Bundle,
    wanted: str,
    text: str,
    batches: Sequence[Batch],
    known: dict[str, Any],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One row: a format, or (empty) the original against itself."""
    from trivium.report.compression import compression_report

    started = time.perf_counter()
    made = _made(original, wanted, batches)
    seconds = time.perf_counter() - started
    timed = options.only != "quality"
    report = compression_report(
        original,
        made,
        text,
        windows=options.windows,
        window_tokens=options.window_tokens,
        prompts=options.prompts,
        timed=timed,
        known=known,
    )
    loading = _loading(made, options) if timed else {}
    return {"format": wanted or ORIGINAL, "quantizing_seconds": seconds, **loading, "report": report}


def _made(original: Bundle, wanted: str, batches: Sequence[Batch] | None = None) -> Bundle:
    """The model in a format; without calibration text each rounded to nearest."""
    from trivium.quantization.quantize import quantize_model
    from trivium.quantization.schemes import scheme_for

    if not wanted:
        return original
    format, _, rest = wanted.partition(":")
    group, _, method = rest.partition(":")
    changes: dict[str, Any] = {"group_size": int(group)} if group else {}
    scheme = scheme_for(format, method=method if batches and method else "nearest", **changes)
    return replace(original, model=quantize_model(deepcopy(original.model), scheme, calibration=batches))


def _with_speed(options: argparse.Namespace) -> dict[str, Any]:
    """The figures in the JSON file, loading and speed measured anew."""
    from trivium.checkpoints.bundle import load
    from trivium.report.compression import scored_rows, speeds

    file = Path(options.json)
    found: dict[str, Any] = json.loads(file.read_text())
    before = found["arguments"]
    original = load(found["model"])
    text, _ = _text(before["text"])
    (rows, *_) = scored_rows(original, text, before["windows"], before["window_tokens"])
    taken: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for result in found["results"]:
        wanted = "" if result["format"] == ORIGINAL else result["format"]
        layout = ":".join(wanted.split(":")[:2])
        if layout not in taken:
            say(f"{result['format']} ...")
            made = _made(original, wanted)
            taken[layout] = _loading(made, options), speeds(original, made, rows, writes=True)
        loading, speed = taken[layout]
        result |= loading
        result["report"]["speed"] = speed
    found["speed_circumstances"] = circumstances(("torch",))
    file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _loading(made: Bundle, options: argparse.Namespace) -> dict[str, float]:
    """Size of the files, and how long they take to load and how much memory that needs."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        made.save(directory)
        command = [sys.executable, __file__, "--load", str(directory), "--threads", str(options.threads)]
        loads = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(options.loads)
        ]
        return {
            "file_bytes": sum(file.stat().st_size for file in directory.glob("*.safetensors")),
            "load_seconds": statistics.median(load["seconds"] for load in loads),
            "load_peak_bytes": statistics.median(load["peak_bytes"] for load in loads),
        }


def _loaded(directory: str, threads: int) -> dict[str, float]:
    """In a process of its own: how long loading takes after imports, and the most memory held until a text was read.

    Reading is part of it because weights that lie in a file as they are used come into memory only then.
    """
    import torch

    from trivium.checkpoints.bundle import load
    from trivium.runtime import choose_runtime, prepare_process

    prepare_process(choose_runtime("cpu", threads=threads))
    started = time.perf_counter()
    bundle = load(directory)
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        bundle.model.hidden(torch.zeros(1, 8, dtype=torch.long))
    return {"seconds": seconds, "peak_bytes": peak_resident_bytes()}


def _text(file: str) -> tuple[str, str]:
    """The text that is scored, and what it is called."""
    from trivium.checkpoints.calibration_text import measuring_text

    wikitext = DATA / "wikitext-2" / "valid.txt"
    if file:
        return Path(file).read_text(encoding="utf-8"), file
    if wikitext.is_file():
        return wikitext.read_text(encoding="utf-8"), "WikiText-2, validation"
    return measuring_text(), "standard library"


def _calibration(file: str) -> tuple[list[str] | None, str]:
    c4 = DATA / "c4-demo" / "c4_demo_part1.jsonl"
    if file:
        return [Path(file).read_text(encoding="utf-8")], file
    if c4.is_file():
        return [json.loads(line)["text"] for line in c4.read_text(encoding="utf-8").splitlines()], "C4"
    return None, "standard library"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--formats", default=FORMATS, help="format[:group size[:method]], separated by commas")
    parser.add_argument("--text", default="", help="a text file to score")
    parser.add_argument("--calibration", default="", help="a text file for gptq and awq")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", default="", help="where to write all figures")
    parser.add_argument("--plot", default="", help="where to write the plot (PNG)")
    parser.add_argument("--loads", type=int, default=3, help="how often loading is measured; the median counts")
    parser.add_argument("--only", choices=("quality", "speed"), help="one half; speed is added to the --json of a run")
    parser.add_argument("--load", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only == "speed" and not Path(options.json).is_file():
        parser.error("--only speed needs --json with the file of a run")
    return options


if __name__ == "__main__":
    main()
