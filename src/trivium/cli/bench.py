"""`trivium bench`: how fast a model reads and writes here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError
from trivium.progress import short_bytes, short_number

if TYPE_CHECKING:
    from trivium.generation.settings import GenerationSettings
    from trivium.generation.speed import Speed, Spread
    from trivium.machine import MachineSpeed
    from trivium.models.build import Model
    from trivium.models.config import ModelConfig
    from trivium.planner.uses import Use

app = new_app()

# How long this machine's own rates are measured, in seconds.
MACHINE_SECONDS = 3.0
ROWS_AT_MOST = 1024
STEPS = {"native": "compiled code", "torch": "torch"}


@app.command()
def bench(
    model: ModelArgument,
    quantize: QuantizeOption = None,
    dtype: DtypeOption = "fp32",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of each prompt, in tokens.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=2, help="How many tokens to write after each.")] = 128,
    batch: Annotated[str, typer.Option(help="How many texts at a time; several numbers with commas.")] = "1,8",
    kv_cache: Annotated[
        str, typer.Option(help="How keys and values are kept: model (as they are computed) or int8.")
    ] = "model",
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How often each figure is measured.")] = 5,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Compute threads. [0: as many as torch chooses]")] = 0,
    ignore_plan: IgnorePlanFlag = False,
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
        how = Opening(device, dtype, quantize, ignore_plan, threads)
        asked = Asked(model, sizes, prompt_tokens, new_tokens, repeats, settings)
        values = _measured(asked, how, output)
        output.result(values, _text(values))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    model: str
    sizes: list[int]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    settings: GenerationSettings

    def use(self, config: ModelConfig) -> Use:
        """What is computed at once at the most; UserError where the model has too few positions."""
        from trivium.generation.speed import refuse_too_long, writes
        from trivium.planner.uses import Use

        refuse_too_long(config, self.prompt_tokens, self.new_tokens)
        new_tokens = self.new_tokens if writes(config) else 0
        return Use(max(self.sizes), self.prompt_tokens, new_tokens, kv_int8=self.settings.kv_cache == "int8")


def _measured(asked: Asked, how: Opening, output: Output) -> dict[str, Any]:
    """State the plan, load the model, measure it, then the machine."""
    opened = open_planned(asked.model, output, "bench", asked.use, how)
    model, progress = opened.bundle.model, output.progress
    import torch

    from trivium.generation.speed import code_paths, measure_speed, stored_bytes
    from trivium.machine import measure_machine
    from trivium.training.memory import peak_bytes

    loaded_bytes = peak_bytes(model.device)
    speeds = [
        measure_speed(
            model,
            opened.bundle.tokenizer,
            rows=rows,
            prompt_tokens=asked.prompt_tokens,
            new_tokens=asked.new_tokens,
            repeats=asked.repeats,
            settings=asked.settings,
            progress=progress,
        )
        for rows in asked.sizes
    ]
    memory = opened.measured()
    progress.start(f"measuring {opened.planned.device}")
    machine = measure_machine(MACHINE_SECONDS, opened.planned.device)
    progress.finish()
    return {
        "model": asked.model,
        "quantize": how.quantize,
        "dtype": str(model.dtype).removeprefix("torch."),
        "kv_cache": asked.settings.kv_cache,
        "device": opened.planned.device,
        "threads": torch.get_num_threads(),
        **code_paths(model),
        "load_seconds": opened.load_seconds,
        "weights_bytes": stored_bytes(model),
        "loaded_peak_bytes": loaded_bytes,
        **memory,
        "machine": dataclasses.asdict(machine),
        "runs": [_run(model, speed, machine, asked.settings) for speed in speeds],
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
        f"(planned {short_bytes(values['planned_peak_bytes'])}; after loading "
        f"{short_bytes(values['loaded_peak_bytes'])}; torch itself is in all of them)",
        f"{'computed':<10}on {values['device']}, {values['threads']} threads; steps by {STEPS[values['step']]}, "
        f"kernels: {values['kernels']}",
        f"{'machine':<10}{machine['read_gb_per_s']:.1f} GB/s, {machine['fp32_gflops']:,.0f} GFLOP/s in fp32, "
        f"{machine['bf16_gflops']:,.0f} in bf16",
        "",
        f"{'texts':<7}{'prompt':>7}{'new':>6}  {'first token':<26}{'prefill, tokens/s':<38}decode, tokens/s",
    ]
    for run in values["runs"]:
        first = run["first_token_seconds"]
        shown = f"{first['median']:.3f} s [{first['low']:.3f} {first['high']:.3f}]"
        lines.append(
            f"{run['rows']:<7}{run['prompt_tokens']:>7}{run['new_tokens']:>6}  {shown:<26}"
            f"{_pace(run, 'prefill'):<38}{_pace(run, 'decode')}"
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
