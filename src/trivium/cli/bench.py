"""`trivium bench`: how fast a model reads and writes here."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.opening import ModelArgument
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError
from trivium.progress import Progress, short_bytes, short_number

if TYPE_CHECKING:
    from trivium.generation.settings import GenerationSettings
    from trivium.generation.speed import Speed, Spread
    from trivium.machine import MachineSpeed
    from trivium.models.build import Model

app = new_app()

# How long this machine's own rates are measured, in seconds.
MACHINE_SECONDS = 3.0
ROWS_AT_MOST = 1024
STEPS = {"native": "compiled code", "torch": "torch"}


@app.command()
def bench(
    model: ModelArgument,
    quantize: Annotated[
        str | None, typer.Option(help="Measure it quantized to this format: int8, int4, nf4, ...")
    ] = None,
    dtype: Annotated[str, typer.Option(help="The type it computes in: fp32, bf16 or fp16.")] = "fp32",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of each prompt, in tokens.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=2, help="How many tokens to write after each.")] = 128,
    batch: Annotated[str, typer.Option(help="How many texts at a time; several numbers with commas.")] = "1,8",
    kv_cache: Annotated[
        str, typer.Option(help="How keys and values are kept: model (as they are computed) or int8.")
    ] = "model",
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How often each figure is measured.")] = 5,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Compute threads. [0: as many as torch chooses]")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure how fast a model reads prompts (prefill) and writes (decode), beside what this machine allows at most.

    The limit of reading is the measured rate of matrix products in the model's type; that of writing is the measured
    memory bandwidth over the bytes of weights, keys and values that each step reads. Figures are medians, with the
    lowest and the highest in brackets. Measure on a machine that does nothing else.

    \b
    Examples:
      trivium bench smollm2-135m-instruct --quantize int8
      trivium bench MODEL --dtype bf16 --prompt-tokens 1024 --batch 1,4,16 --json
    """
    sizes = _sizes(batch)
    with Output(as_json, quiet) as output:
        from trivium.config import build_settings
        from trivium.generation.settings import GenerationSettings

        settings = build_settings(GenerationSettings, {"kv_cache": kv_cache}, "bench")
        asked = Asked(model, quantize, dtype, sizes, prompt_tokens, new_tokens, repeats, threads, device, settings)
        values = _measured(asked, output.progress)
        output.result(values, _text(values))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    model: str
    quantize: str | None
    dtype: str
    sizes: list[int]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int
    device: str
    settings: GenerationSettings


def _measured(asked: Asked, progress: Progress) -> dict[str, Any]:
    """Load the model, measure it, then the machine."""
    import torch

    from trivium.checkpoints.bundle import load
    from trivium.generation.speed import code_paths, measure_speed, stored_bytes
    from trivium.machine import measure_machine
    from trivium.runtime import choose_runtime, prepare_process
    from trivium.training.memory import peak_bytes

    runtime = choose_runtime(asked.device, threads=asked.threads)
    prepare_process(runtime)
    progress.start(f"loading {asked.model}")
    started = time.perf_counter()
    bundle = load(asked.model, dtype=asked.dtype, device=runtime.device, quantize=asked.quantize)
    load_seconds = time.perf_counter() - started
    for note in bundle.notes:
        progress.note(note)
    loaded_bytes = peak_bytes(runtime.torch_device())
    speeds = [
        measure_speed(
            bundle.model,
            bundle.tokenizer,
            rows=rows,
            prompt_tokens=asked.prompt_tokens,
            new_tokens=asked.new_tokens,
            repeats=asked.repeats,
            settings=asked.settings,
            progress=progress,
        )
        for rows in asked.sizes
    ]
    most_bytes = peak_bytes(runtime.torch_device())
    progress.start(f"measuring {runtime.device}")
    machine = measure_machine(MACHINE_SECONDS, runtime.device)
    progress.finish()
    return {
        "model": asked.model,
        "quantize": asked.quantize,
        "dtype": str(bundle.model.dtype).removeprefix("torch."),
        "kv_cache": asked.settings.kv_cache,
        "device": runtime.device,
        "threads": torch.get_num_threads(),
        **code_paths(bundle.model),
        "load_seconds": load_seconds,
        "weights_bytes": stored_bytes(bundle.model),
        "loaded_peak_bytes": loaded_bytes,
        "peak_bytes": most_bytes,
        "machine": dataclasses.asdict(machine),
        "runs": [_run(bundle.model, speed, machine, asked.settings) for speed in speeds],
    }


def _sizes(batch: str) -> list[int]:
    """The numbers of texts; UserError for words that are none."""
    words = [word.strip() for word in batch.split(",")]
    if not all(word.isdecimal() and len(word) < 6 and 1 <= int(word) <= ROWS_AT_MOST for word in words):
        raise UserError(f"--batch {batch!r}: give numbers from 1 to {ROWS_AT_MOST} with commas between, such as 1,8")
    return list(dict.fromkeys(map(int, words)))


def _product_rate(model: Model, machine: MachineSpeed) -> float | None:
    """FLOP/s of matrix products in what the model multiplies in; None where that was not measured."""
    import torch

    if any(getattr(module, "kind", None) == "int8_dynamic" for module in model.modules()):
        return None if machine.int8_gops is None else 1e9 * machine.int8_gops
    if model.dtype == torch.float16 and machine.device == "cpu":
        return None
    return 1e9 * (machine.fp32_gflops if model.dtype == torch.float32 else machine.bf16_gflops)


def _run(model: Model, speed: Speed, machine: MachineSpeed, settings: GenerationSettings) -> dict[str, Any]:
    """One batch size: what was measured, what is possible, and the share of it that was reached."""
    from trivium.generation.speed import limits

    most = limits(
        model,
        speed,
        flops_per_second=_product_rate(model, machine),
        bytes_per_second=1e9 * machine.read_gb_per_s,
        settings=settings,
    )
    prefill, decode = speed.prefill_tokens_per_second, speed.decode_tokens_per_second
    return {
        **dataclasses.asdict(speed),
        "prefill_flops": most.prefill_flops,
        "prefill_limit": most.prefill_tokens_per_second,
        "prefill_share": _share(prefill, most.prefill_tokens_per_second),
        "decode_bytes": most.decode_bytes,
        "decode_limit": most.decode_tokens_per_second,
        "decode_share": _share(decode, most.decode_tokens_per_second),
    }


def _share(measured: Spread | None, limit: float | None) -> float | None:
    return None if measured is None or limit is None else measured.median / limit


def _text(values: dict[str, Any]) -> str:
    """The figures as a table."""
    machine = values["machine"]
    lines = [
        f"{'model':<10}{values['model']}, {values['quantize'] or 'not quantized'}, computing in {values['dtype']}",
        f"{'weights':<10}{short_bytes(values['weights_bytes'])}, loaded in {values['load_seconds']:.2f} s",
        f"{'peak':<10}{short_bytes(values['peak_bytes'])} "
        f"(when loaded {short_bytes(values['loaded_peak_bytes'])}; torch and all libraries are in both)",
        f"{'computed':<10}on {values['device']}, {values['threads']} threads; steps by {STEPS[values['step']]}, "
        f"kernels: {values['kernels']}",
        f"{'machine':<10}{machine['read_gb_per_s']:.1f} GB/s, {machine['fp32_gflops']:,.0f} GFLOP/s in fp32, "
        f"{machine['bf16_gflops']:,.0f} in bf16",
        "",
        f"{'texts':<7}{'prompt':>7}{'new':>6}  {'first token':<26}{'prefill, tokens/s':<34}decode, tokens/s",
    ]
    for run in values["runs"]:
        first = run["first_token_seconds"]
        shown = f"{first['median']:.3f} s [{first['low']:.3f} {first['high']:.3f}]"
        lines.append(
            f"{run['rows']:<7}{run['prompt_tokens']:>7}{run['new_tokens']:>6}  {shown:<26}"
            f"{_pace(run, 'prefill'):<34}{_pace(run, 'decode'):<34}".rstrip()
        )
    return "\n".join(lines)


def _pace(run: dict[str, Any], what: str) -> str:
    """`163 [158 165], 71 % of 230`."""
    pace = run[f"{what}_tokens_per_second"]
    if pace is None:
        return "writes nothing"
    shown = f"{_rate(pace['median'])} [{_rate(pace['low'])} {_rate(pace['high'])}]"
    if run[f"{what}_share"] is None:
        return shown
    return f"{shown}, {run[f'{what}_share']:.0%} of {_rate(run[f'{what}_limit'])}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value < 1e5 else short_number(value)
