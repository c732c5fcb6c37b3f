"""`trivium chat`: talk with a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.cli.settings_help import help_of, settings_of
from trivium.errors import UserError
from trivium.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from trivium.generation.chat import Chat
    from trivium.generation.generate import Generation

app = new_app()

COMMANDS = "/exit (or end of input), /reset forgets the conversation, /system TEXT sets the system message"


@app.command()
def chat(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Option(help="Say this, print the answer, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message: who the model is to be.")] = None,
    max_new_tokens: Annotated[int, help_of(GenerationSettings, "max_new_tokens")] = 512,
    temperature: Annotated[float, help_of(GenerationSettings, "temperature")] = 0.0,
    top_p: Annotated[float, help_of(GenerationSettings, "top_p")] = 1.0,
    repetition_penalty: Annotated[float, help_of(GenerationSettings, "repetition_penalty")] = 1.0,
    seed: Annotated[int, help_of(GenerationSettings, "seed")] = 0,
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Talk with a model that was tuned to chat, in its own chat template; answers appear as they are made.

    Each line is one turn; without a terminal, turns are read from standard input. /exit (or end of input) ends, /reset
    forgets the conversation, /system TEXT sets the system message. When the context is full, the oldest turns are
    forgotten. With --json one object comes at the end: the last answer, and all messages.

    \b
    Examples:
      trivium chat smollm2-135m-instruct
      trivium chat MODEL --prompt "What is a tokenizer?" --temperature 0.7 --top-p 0.9
      printf 'Hello!\\nWhat did I say?\\n' | trivium chat MODEL --json
    """
    settings = settings_of(GenerationSettings, locals(), "chat")
    with Output(as_json, quiet) as output:
        from trivium.planner.uses import talking

        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(
            model, output, "chat", lambda c: talking(c, settings, prompt and f"{system or ''} {prompt}"), how
        )
        from trivium.generation.chat import Chat

        bundle = opened.bundle
        conversation = Chat(bundle.model, bundle.tokenizer, settings, system=system, eos_ids=bundle.eos_ids)
        answer = _last_answer(prompt, conversation, output)
        values = {} if answer is None else {**opened.written(answer), "messages": conversation.messages}
        if as_json and not values:
            raise UserError("nothing was said: give --prompt, or lines on standard input")
        if as_json:
            output.result(values)


def _last_answer(prompt: str | None, conversation: Chat, output: Output) -> Generation | None:
    """Answer the prompt, or all that is said until the end; None when nothing was."""
    interactive = prompt is None and sys.stdin.isatty()
    if interactive:
        output.progress.note(COMMANDS)
    answer = None
    for line in [prompt] if prompt is not None else _lines(interactive):
        if not _obeyed(line, conversation, output) and line.strip():
            answer = _answer(line, conversation, output, interactive) or answer
    return answer


def _lines(interactive: bool) -> Iterator[str]:
    """What is said, line by line, up to /exit or the end of input."""
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return
        if not (line or interactive) or line.strip() == "/exit":
            return
        yield line.rstrip("\n")


def _answer(line: str, conversation: Chat, output: Output, interactive: bool) -> Generation | None:
    """Show the answer to `line`; at a terminal a refusal is said and the conversation goes on."""
    try:
        answer = conversation.say(line, stream=output.write)
    except UserError as error:
        if not interactive:
            raise
        output.progress.note(str(error))
        return None
    output.write("\n")
    return answer


def _obeyed(line: str, conversation: Chat, output: Output) -> bool:
    """Whether `line` was a command, which is then carried out. A / that no command name follows is ordinary text."""
    name, _, rest = line.strip().partition(" ")
    if name == "/reset":
        conversation.reset()
    elif name == "/system":
        conversation.system = rest.strip() or None
    elif name.startswith("/") and name[1:].isalpha() and not rest:
        output.progress.note(f"there is no command {name}; there are {COMMANDS}")
    else:
        return False
    return True
