"""What a model is not for, and what cannot fit, is refused by its config: its weights are not even read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.small_models import refusal, result, saved
from pretraining.small_runs import WITH_SMALL_MEMORY, finished
from trivium.checkpoints.directory import save_model_directory
from trivium.cli import main
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.planner.history import history_report
from trivium.tokenizer.bpe import Tokenizer

WRONG = {
    "bert": (
        (("metric", "perplexity", "MODEL", "--file", "FILE"), "a masked model has no perplexity"),
        (("generate", "MODEL", "--prompt", "a"), "generation needs a decoder or an encoder-decoder"),
        (("seq2seq", "MODEL", "a"), "seq2seq needs an encoder-decoder"),
        (("chat", "MODEL", "--prompt", "a"), "chat needs a decoder"),
        (("classify", "MODEL", "a"), "classification needs a model with a classification head"),
    ),
    "llama": (
        (("fill-mask", "MODEL", "a [MASK]"), "filling a mask needs an encoder"),
        (("seq2seq", "MODEL", "a"), "seq2seq needs an encoder-decoder"),
    ),
    "t5": (
        (("metric", "perplexity", "MODEL", "--file", "FILE"), "has no perplexity without a source"),
        (("fill-mask", "MODEL", "a [MASK]"), "filling a mask needs an encoder"),
        (("chat", "MODEL", "--prompt", "a"), "chat needs a decoder"),
    ),
}


@pytest.mark.parametrize("family", list(WRONG))
def test_refused_without_reading_the_weights(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = saved(tmp_path / "model", family), tmp_path / "text.txt"
    text.write_text("some text")
    (model / "model.safetensors").unlink()
    places = {"MODEL": str(model), "FILE": str(text)}
    for words, reason in WRONG[family]:
        assert reason in refusal(capsys, *(places.get(word, word) for word in words))
    # The control: what it is for goes on to the weights, and misses them.
    right = {"bert": ("fill-mask", "[MASK]"), "llama": ("generate", "--prompt", "a"), "t5": ("seq2seq", "a")}[family]
    assert "no weights" in refusal(capsys, right[0], model, *right[1:])


# Shapes of some 70e9 parameters, 270 GB in fp32 and more: no machine that runs tests has room for one.
SIZES = {"vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
BERT = {"model_type": "bert", **SIZES, "num_attention_heads": 64, "max_position_embeddings": 512}
LARGE = {
    "decoder": {
        "model_type": "llama",
        **SIZES,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
    "encoder": {**BERT, "architectures": ["BertForMaskedLM"]},
    "classifier": {
        **BERT,
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "a", "1": "b"},
        "label2id": {"a": 0, "b": 1},
    },
    "encoder-decoder": {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 8192,
        "d_kv": 128,
        "d_ff": 28672,
        "num_layers": 48,
        "num_decoder_layers": 48,
        "num_heads": 64,
        "decoder_start_token_id": 0,
    },
}
BENCH = ("bench", "MODEL", "--prompt-tokens", "8", "--new-tokens", "2")
USES = (
    ("decoder", ("generate", "MODEL", "--prompt", "a")),
    ("decoder", ("chat", "MODEL", "--prompt", "a")),
    ("decoder", ("metric", "perplexity", "MODEL", "--file", "FILE")),
    ("decoder", ("embed", "MODEL", "a")),
    ("decoder", BENCH),
    ("encoder", ("fill-mask", "MODEL", "a [MASK]")),
    ("encoder", ("embed", "MODEL", "a")),
    ("encoder", BENCH),
    ("classifier", ("classify", "MODEL", "a")),
    ("encoder-decoder", ("seq2seq", "MODEL", "a")),
    ("encoder-decoder", ("generate", "MODEL", "--prompt", "a")),
    ("encoder-decoder", ("embed", "MODEL", "a")),
    ("encoder-decoder", BENCH),
)


def described(folder: Path, kind: str) -> Path:
    """A model directory with a config and nothing else."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE[kind]))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history of its own."""
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return described(tmp_path / "large", "decoder")


@pytest.mark.parametrize(("kind", "words"), USES, ids=lambda value: value if isinstance(value, str) else value[0])
def test_what_cannot_fit_is_refused_before_anything_is_read_or_written(
    kind: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text")
    places = {"MODEL": str(described(tmp_path / "large", kind)), "FILE": str(text)}
    command = [places.get(word, word) for word in words]
    before = sorted(tmp_path.rglob("*"))
    line = refusal(capsys, *command)
    assert "nothing was begun" in line and "available" in line and "--ignore-plan" in line
    assert re.search(r" needs \d+ GB \(weights \d{3} GB, ", line)
    assert sorted(tmp_path.rglob("*")) == before
    # The control: told to go on, it comes to what a config alone lacks.
    assert "no weights" in refusal(capsys, *command, "--ignore-plan") or "tokenizer" in line


def test_the_plan_is_in_the_type_and_format_asked_for(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for options in ("", "--dtype bf16", "--quantize bf16", "--quantize int8", "--quantize int8 --dtype bf16"):
        line = refusal(capsys, "generate", large, "--prompt", "a", *options.split())
        (size,) = re.findall(r"weights ([\d.]+) GB", line)
        found[options] = float(size)
    assert found["--dtype bf16"] == found["--quantize bf16"] == pytest.approx(found[""] / 2, rel=0.01)
    assert found["--quantize int8 --dtype bf16"] <= found["--quantize int8"] < 0.3 * found[""]
    assert "use fp32, bf16 or fp16" in refusal(capsys, "generate", large, "--prompt", "a", "--dtype", "fp8")


@pytest.mark.parametrize(
    ("words", "cures"),
    [
        (("generate", "--prompt", "a"), ("--quantize int4", "--dtype bf16")),
        ((*BENCH[:1], *BENCH[2:], "--batch", "1,64"), ("--quantize int4", "--dtype bf16")),
    ],
    ids=lambda value: value[0],
)
def test_what_would_help_is_said_as_it_is_written(
    words: tuple[str, ...], cures: tuple[str, ...], large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, words[0], large, *words[1:])
    assert all(cure in line for cure in cures)
    # A control: each is an option of the verb, and what it leads to needs less.
    for cure in cures:
        again = refusal(capsys, words[0], large, *words[1:], *cure.split())
        sizes = [float(re.findall(r" needs ([\d.]+) GB", each)[0]) for each in (line, again)]
        assert sizes[1] < 0.6 * sizes[0]


SMALL = (
    ("llama", ("generate", "MODEL", "--prompt", "def wrap", "--max-new-tokens", "4")),
    ("llama", ("chat", "MODEL", "--prompt", "Hello", "--max-new-tokens", "4")),
    ("llama", ("metric", "perplexity", "MODEL", "--file", "FILE")),
    ("bert", ("fill-mask", "MODEL", "import [MASK]")),
    ("bert", ("embed", "MODEL", "some text")),
    ("t5", ("seq2seq", "MODEL", "import os", "--max-new-tokens", "4")),
)


@pytest.mark.parametrize(("family", "words"), SMALL, ids=lambda value: value if isinstance(value, str) else value[0])
def test_the_plan_is_stated_measured_and_kept(
    family: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("def wrap(text):\n    return text\n")
    places = {"MODEL": str(saved(tmp_path / "small", family)), "FILE": str(text)}
    precisions = []
    for dtype in ("fp32", "bf16"):
        assert main([*(places.get(word, word) for word in words), "--dtype", dtype, "--json"]) == 0
        said = capsys.readouterr()
        found = json.loads(said.out)
        first, *_ = said.err.splitlines()
        assert first.startswith("planned memory: ") and "weights" in first and first.endswith("available")
        run = history_report()["runs"][-1]
        assert run["planned_bytes"] == found["planned_peak_bytes"] and run["peak_bytes"] == found["peak_bytes"] > 0
        assert (run["stage"], run["model"]) == (words[1] if words[0] == "metric" else words[0], places["MODEL"])
        precisions.append(run["precision"])
    assert precisions == ["fp32", "bf16"] and len(history_report()["runs"]) == 2


# Reading 2000 bytes at once takes some 180 MB: most of it in the wide MLP of a model of 50 MB.
WIDE = {"vocab_size": 512, "width": 512, "mlp_width": 8192, "layers": 1, "heads": 8}


def test_a_process_that_may_not_take_so_much_is_told_before_it_dies(tmp_path: Path) -> None:
    config = ModelConfig(**WIDE)  # type: ignore[arg-type]
    model, text = build_model(config), tmp_path / "text.txt"
    save_model_directory(tmp_path / "model", model, config, Tokenizer.train(texts=["some text"], vocab_size=300))
    text.write_text("0123456789" * 200)
    words = ["embed", str(tmp_path / "model"), "--file", str(text), "--json"]

    def process(room: int, *more: str) -> subprocess.CompletedProcess[str]:
        return finished([sys.executable, "-c", WITH_SMALL_MEMORY, str(room), *words, *more])

    refused = process(120_000_000)
    assert refused.returncode == 2 and refused.stdout == "" and "nothing was begun" in refused.stderr
    # It was right: told to go on, the process dies of it. With more room it runs, and needs about what was said.
    died = process(120_000_000, "--ignore-plan")
    assert died.returncode not in (0, 2) and "allocate memory" in died.stderr
    enough = process(1_000_000_000)
    assert enough.returncode == 0, enough.stderr
    found = json.loads(enough.stdout)
    # Above rather than below: a single, very wide layer leaves fewer holes than the plan takes for granted.
    assert 0.9 < found["planned_peak_bytes"] / found["peak_bytes"] < 1.35


def test_packed_while_it_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = saved(tmp_path / "small", "llama")
    command = ("generate", small, "--prompt", "def wrap", "--max-new-tokens", 4)
    plain, packed = result(capsys, *command), result(capsys, *command, "--quantize", "int8")
    assert packed["planned_peak_bytes"] <= plain["planned_peak_bytes"] and len(packed["tokens"]) == 4
    assert "no format" in refusal(capsys, *command, "--quantize", "int9")
