"""The command line: one clear line for a mistake, the right exit status, and one JSON object with `--json`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trivium.cli import VERBS, doctor, main
from trivium.errors import UserError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (status, stdout, stderr)."""

    def command(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return command


def test_the_words_without_a_verb(run: Run) -> None:
    assert run("--version") == (0, "trivium 0.1.0\n", "")
    status, out, err = run("--help")
    assert (status, err) == (0, "") and "Usage: trivium VERB" in out
    assert run()[0] == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("docter",), "there is no verb 'docter'; did you mean doctor?"),
        (("xyzzy",), "there is no verb 'xyzzy'; the verbs are quickstart, doctor, "),
        (("--verison",), "there is no option '--verison'; "),
        (("doctor", "--jsn"), "No such option: --jsn"),
        (("doctor", "--seconds", "soon"), "Invalid value for '--seconds'"),
        (("doctor", "now"), "unexpected extra argument"),
        (("generate", "model"), "Missing option '--prompt'"),
        (("tokenizer", "trian"), "No such command 'trian'"),
        (("pretrain", "no-such-recipe.yaml"), "no-such-recipe.yaml: there is no such recipe; "),
        (("quickstart", "--family", "fish"), "--family fish"),
        (("report", "no-such-run"), "no-such-run"),
        (("resume", "no-such-run"), "no-such-run"),
        (("generate", "no-such-model", "--prompt", "x"), "no-such-model"),
        (("generate", "no-such-model", "--prompt", "x", "--top-p", "2"), "top_p: must be less than or equal to 1"),
        (("metric", "perplexity", "no-such-model", "--file", "no-such-file.txt"), "no-such-file.txt"),
        (("tokenizer", "encode", "no-such-tokenizer", "x"), "no-such-tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    run: Run, words: tuple[str, ...], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for form in ((*words,), (*words, "--json")) if words[0] in VERBS else ((*words,),):
        status, out, err = run(*form)
        assert (status, out) == (2, ""), (out, err)
        assert answer in err
        assert len(err.splitlines()) == 1 and err.startswith("trivium: "), err
    assert not list(tmp_path.iterdir()), "something half-written was left"


def verb_that(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Make `trivium doctor` do this instead."""
    monkeypatch.setattr(doctor, "app", lambda **_: action())


def test_how_a_verb_ends_decides_the_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.training.signals import Interrupted

    def raising(error: BaseException) -> Callable[[], object]:
        def action() -> object:
            raise error

        return action

    verb_that(monkeypatch, lambda: None)
    assert run("doctor") == (0, "", "")
    verb_that(monkeypatch, raising(UserError("first\nsecond")))
    assert run("doctor") == (2, "", "trivium: first\ntrivium: second\n")
    verb_that(monkeypatch, raising(KeyboardInterrupt()))
    assert run("doctor") == (130, "", "trivium: interrupted\n")
    for number in (signal.SIGTERM, signal.SIGINT):
        verb_that(monkeypatch, raising(Interrupted(number, 3)))
        status, out, err = run("doctor")
        assert (status, out) == (128 + number, "") and "trivium resume" in err
    verb_that(monkeypatch, lambda **_: torch.empty(1 << 60))
    status, out, err = run("doctor")
    assert (status, out) == (2, "") and "this machine has too little memory for it" in err and err.count("\n") == 1
    verb_that(monkeypatch, raising(RuntimeError("another")))
    with pytest.raises(RuntimeError):
        run("doctor")
    verb_that(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        run("doctor")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m trivium --help | true; exit ${{PIPESTATUS[0]}}"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.returncode in (0, 1) and done.stderr == "", done.stderr


def test_json_is_one_object_and_nothing_else(run: Run) -> None:
    status, out, err = run("doctor", "--seconds", "0.2", "--json")
    assert status == 0 and "measuring cpu" in err
    assert out.endswith("}\n") and out.count("\n") == 1
    found = json.loads(out)
    assert found["speeds"][0]["fp32_gflops"] > 0 and found["usable_cores"] >= 1 and "torch" in found["versions"]
    status, out, err = run("doctor", "--seconds", "0.2", "--quiet")
    assert (status, err) == (0, "") and re.search(r"^cpu +[\d,]+ +[\d,]+ +\S+ +[\d.]+ GB/s$", out, re.MULTILINE)


def test_what_libraries_print_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    from trivium.cli.output import Output

    with Output(as_json=True, quiet=True) as output:
        print("chatter")
        output.write("text for people")
        output.result({"path": Path("a"), "loss": float("nan"), "text": "ü"})
    out, err = capsys.readouterr()
    assert out == '{"path": "a", "loss": null, "text": "ü"}\n' and err == "chatter\n"
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.cli.output import Output

    monkeypatch.setenv("RANK", "1")
    for as_json in (False, True):
        with Output(as_json, quiet=False) as output:
            output.progress.start("work")
            output.result({"loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "trivium", "docter"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "trivium: there is no verb 'docter'; did you mean doctor?\n"
