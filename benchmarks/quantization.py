"""What each format costs one model: size, loading, perplexity with its interval, KL, agreement, greedy text, speed.

Every format is made from the same weights and measured beside the original on the same text, which calibrated methods
have not seen. Loading (and reading a few tokens) is measured in a process of its own. The text is WikiText-2 and the
calibration text C4 where the folder of real data sets lies beside the repository, else different parts of Python's
standard library.

The weights that ship as `smollm2-135m-instruct` are 4-bit themselves (Q4_1: 16 levels in every group of 32). Rounding
them to int4_asymmetric in groups of 32 finds that very grid again and costs next to nothing, which says nothing about
other models: coarser grids (int4, groups of 128) are the test here.
"""

from __future__ import annotations

import argparse
import json
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
DATA = ROOT.parent / "shared" / "data"
COLUMNS = (
    "format", "MB", "load, s", "peak, MB", "perplexity", "change", "95 %", "KL", "same token", "greedy equal",
    "writing, tok/s", "reading, tok/s",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write JSON and a plot where asked, and print the table."""
    options = _options(arguments)
    if options.load:
        print(json.dumps(_loaded(options.load)))
        return
    from trivium.checkpoints.bundle import load
    from trivium.checkpoints.calibration_text import calibration_batches
    from trivium.report.compression_plots import compression_plot
    from trivium.runtime import choose_runtime, prepare_process

    prepare_process(choose_runtime("cpu", threads=options.threads))
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
    for wanted in ("", *options.formats.split(",")):
        say(f"{wanted or 'the original'} ...")
        found["results"].append(_measured(original, wanted, text, batches, options))
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
        f"{result['file_bytes'] / 1e6:.0f}",
        f"{result['load_seconds']:.2f}",
        f"{result['load_peak_bytes'] / 1e6:.0f}",
        f"{quality['perplexity']['quantized']:.3f}",
        f"{quality['perplexity_change']:+.2%}",
        f"{low:+.2%} to {high:+.2%}",
        f"{quality['kl']:.2g}",
        f"{quality['agreement']:.1%}",
        f"{greedy['equal']:.0%}",
        f"{speed['writing']['quantized']:.0f}",
        f"{speed['reading']['quantized']:.0f}",
    ]


def _measured(
    original: Bundle, wanted: str, text: str, batches: Sequence[Batch], options: argparse.Namespace
) -> dict[str, Any]:
    """One row: a format, or (empty) the original against itself."""
    from trivium.quantization.quantize import quantize_model
    from trivium.quantization.schemes import scheme_for
    from trivium.report.compression import compression_report

    made, started = original, time.perf_counter()
    if wanted:
        format, _, rest = wanted.partition(":")
        group, _, method = rest.partition(":")
        changes: dict[str, Any] = {"method": method or "nearest", **({"group_size": int(group)} if group else {})}
        scheme = scheme_for(format, **changes)
        model = quantize_model(deepcopy(original.model), scheme, calibration=batches)
        made = replace(original, model=model)
    seconds = time.perf_counter() - started
    report = compression_report(
        original, made, text, windows=options.windows, window_tokens=options.window_tokens, prompts=options.prompts
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        made.save(directory)
        command = [sys.executable, __file__, "--load", str(directory)]
        loaded = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return {
        "format": wanted or "fp32 (original)",
        "quantizing_seconds": seconds,
        "file_bytes": size,
        "load_seconds": loaded["seconds"],
        "load_peak_bytes": loaded["peak_bytes"],
        "report": report,
    }


def _loaded(directory: str) -> dict[str, float]:
    """In a process of its own: how long loading takes after imports, and the most memory held until a text was read.

    Reading is part of it because weights that lie in a file as they are used come into memory only then.
    """
    import torch

    from trivium.checkpoints.bundle import load
    from trivium.runtime import choose_runtime, prepare_process

    prepare_process(choose_runtime("cpu"))
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
    parser.add_argument("--load", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
