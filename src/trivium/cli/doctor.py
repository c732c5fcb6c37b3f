"""`trivium doctor`: what this machine is, and how fast, measured."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app
from trivium.progress import short_bytes

app = new_app()


@app.command()
def doctor(
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="How long to measure each device.")] = 6.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Describe this machine and measure it: matrix products, memory bandwidth, versions.

    The rates are the ceilings against which training and generation are to be judged here.

    \b
    Examples:
      trivium doctor
      trivium doctor --json > machine.json
    """
    from trivium.machine import describe_machine, measure_machine
    from trivium.planner.speed import remember
    from trivium.runtime import choose_runtime, prepare_process

    with Output(as_json, quiet) as output:
        output.progress.start("looking at this machine")
        runtime = choose_runtime()
        prepare_process(runtime)
        facts = describe_machine()
        devices = ["cpu", *(f"cuda:{index}" for index in range(len(facts.gpus)))]
        speeds = []
        for device in devices:
            output.progress.start(f"measuring {device}")
            speeds.append(measure_machine(seconds, device))
        output.progress.finish()
        values: dict[str, Any] = dataclasses.asdict(facts)
        values["precision"] = runtime.precision
        values["speeds"] = [dataclasses.asdict(speed) for speed in speeds]
        remember(values)
        output.result(values, _text(values))


def _text(values: dict[str, Any]) -> str:
    """The facts and speeds as a table."""
    rows = [
        ("system", values["system"]),
        ("processor", values["processor"]),
        ("instructions", " ".join(values["flags"]) or "not listed by this system"),
        (
            "cores",
            f"{values['physical_cores']} physical, {values['usable_cores']} usable here, {values['threads']} "
            "threads of torch",
        ),
        ("memory", f"{short_bytes(values['memory_bytes'])} usable, {short_bytes(values['available_bytes'])} free"),
        ("disk", f"{short_bytes(values['disk_free_bytes'])} free here"),
        *(("GPU", f"{g['name']}, {short_bytes(g['memory_bytes'])}") for g in values["gpus"]),
        ("precision", f"{values['precision']} is the precision that the quickstart chooses here"),
        ("versions", ", ".join(f"{name} {version}" for name, version in values["versions"].items())),
    ]
    lines = [f"{name:<14}{text}" for name, text in rows]
    lines += ["", f"{'measured':<14}{'fp32':>10}{'bf16':>10}{'int8':>10}   GFLOP/s{'memory':>12}"]
    for speed in values["speeds"]:
        int8 = "-" if speed["int8_gops"] is None else f"{speed['int8_gops']:,.0f}"
        lines.append(
            f"{speed['device']:<14}{speed['fp32_gflops']:>10,.0f}{speed['bf16_gflops']:>10,.0f}{int8:>10}"
            f"{speed['read_gb_per_s']:>17,.1f} GB/s"
        )
    return "\n".join(lines)
