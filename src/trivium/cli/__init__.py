"""The command line: a table of verbs; what a verb needs is imported only after the words are parsed.

Each verb lives in `trivium.cli.<verb>`, a module that holds a typer `app` and no logic of its own. Exit
status: 0 done; 2 the user's mistake, said on stderr; 130 or 143 interrupted after saving; 1 a bug of ours,
with its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trivium import __version__
from trivium.errors import UserError, nearest


@dataclass(frozen=True)
class Verb:
    """One line of the table."""

    stage: str
    """The heading it stands under in `trivium --help`."""
    summary: str
    """What it does, in one line."""


# A disk that takes no more (or none at all) is no bug of ours.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

VERBS: dict[str, Verb] = {
    "quickstart": Verb("Start", "From nothing to a trained, measured language model in minutes"),
    "doctor": Verb("Start", "What this machine is, and how fast: measured"),
    "plan": Verb("Start", "Will it fit, and how long will it take: memory and time of a run, before it begins"),
    "tokenizer": Verb("Learn", "Learn a tokenizer, use it, judge it"),
    "pretrain": Verb("Learn", "Train a model on raw text, as a recipe says"),
    "finetune": Verb("Learn", "Teach a model a task from rows: all of it, or a small part"),
    "check": Verb("Learn", "Try a fine-tuning recipe in small before it is run"),
    "inspect": Verb("Learn", "Rows of a fine-tuning recipe as the model sees them, what is learned marked"),
    "resume": Verb("Learn", "Go on with a run that was interrupted, bit for bit"),
    "generate": Verb("Use", "Continue a prompt"),
    "chat": Verb("Use", "Talk with a model"),
    "fill-mask": Verb("Use", "Fill the [MASK] in a text"),
    "seq2seq": Verb("Use", "Turn a text into another: translate, summarise"),
    "classify": Verb("Use", "Tell the class of a text"),
    "embed": Verb("Use", "Turn texts into vectors"),
    "quantize": Verb("Use", "Store a model in fewer bits, and measure what that costs"),
    "merge": Verb("Use", "An adapter and its base as one model, and how near it is to the two"),
    "export": Verb("Use", "Write a model as a Hugging Face directory or a GGUF file"),
    "metric": Verb("Judge", "Numbers from a model or from predictions: perplexity, rouge, bleu"),
    "report": Verb("Judge", "One self-contained page about a run"),
    "compare": Verb("Judge", "Runs side by side: what each learned, forgot and cost"),
    "matrix": Verb("Judge", "What works with what, as tested"),
    "bench": Verb("Judge", "How fast a model reads and writes here, beside what the machine allows"),
}

# Nor is a path that cannot be used.
PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}

# Turns of a waiting loop (some microseconds) after which a compute thread sleeps.
SPIN_COUNT = "1000"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    # Compute threads that wait by spinning take the cores from whatever else runs here, and each step then takes many
    # times as long; told to spin briefly they sleep instead. Read when torch is loaded, hence set before.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name that is not UTF-8 can be shown
    try:
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except UserError as error:
        _say(str(error))
        return 2
    except SystemExit as error:
        if not isinstance(code := getattr(error, "exit_code", None), int):
            raise
        _say(str(error))  # a run that was told to end, and has saved; its message says how to go on
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        _say("this machine has too little memory for it; what was saved before stands (`trivium plan` finds what fits)")
        return 2
    except BrokenPipeError:
        # The reader (`head`, say) has gone: not our error. Later writes, at exit too, go nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in PATH_ERRORS and error.filename:
            _say(f"{os.fsdecode(error.filename)}: {error.strerror}; give another path, or change what is there")
            return 2
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror}; what was saved before stands: make room and give the command again")
        return 2
    return status


def overview() -> str:
    """What `trivium --help` says."""
    width = max(map(len, VERBS)) + 2
    lines = [
        "Trivium: the whole life of a language model in one library and one command.",
        "",
        "Usage: trivium VERB [ARGUMENTS]      trivium VERB --help      trivium --version",
    ]
    stage = ""
    for name, verb in VERBS.items():
        if verb.stage != stage:
            stage = verb.stage
            lines += ["", stage]
        lines.append(f"  {name:<{width}}{verb.summary}")
    lines += ["", "Every verb takes --json (one JSON object on stdout, all else on stderr)."]
    return "\n".join(lines) + "\n"


def _dispatch(arguments: list[str]) -> int:
    """The words that need no verb, else the verb."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        sys.stdout.write(overview())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        sys.stdout.write(f"trivium {__version__}\n")
        return 0
    name, *rest = arguments
    if name not in VERBS:
        near = nearest(name, VERBS)
        cure = f"did you mean {near}?" if near else f"the verbs are {', '.join(VERBS)}"
        kind = "option" if name.startswith("-") else "verb"
        raise UserError(f"there is no {kind} {name!r}; {cure}")
    return _run_verb(name, rest)


def _run_verb(name: str, arguments: list[str]) -> int:
    """Import the verb's module and let typer parse its words; typer's complaints become one line."""
    module = importlib.import_module(f"trivium.cli.{name.replace('-', '_')}")
    try:
        status = module.app(args=arguments, prog_name=f"trivium {name}", standalone_mode=False)
    except Exception as error:
        explain = getattr(error, "format_message", None)  # typer's own errors, under any of its versions
        if explain is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(explain().rstrip() + "\n")
            return 2
        command = getattr(getattr(error, "ctx", None), "command_path", f"trivium {name}")
        raise UserError(f"{' '.join(explain().split())} (see `{command} --help`)") from None
    if status == INTERRUPTED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    if hasattr(module, "after_help") and {"--help", "-h"} & set(arguments):
        sys.stdout.write(module.after_help())
    return status if isinstance(status, int) else 0


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a tensor could not be had; torch is here already, if one was asked for."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from trivium.training.memory import is_out_of_memory

    return is_out_of_memory(error)


def _say(text: str) -> None:
    """A message on stderr, each line marked as ours."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("".join(f"trivium: {line}\n" for line in text.splitlines()))
