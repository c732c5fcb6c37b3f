"""generation_config.json and config.json: what is read, what is written, and what `transformers` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BartConfig, GenerationConfig

from trivium.checkpoints import config_files
from trivium.checkpoints.config_files import (
    config_values,
    generation_values,
    pooling_notes,
    read_eos_ids,
    read_generation,
    special_ids,
)
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer.train(texts=["It was the best of times. " * 20], vocab_size=300)
SIZE = {"vocab_size": 320, "width": 32, "layers": 2, "heads": 4}


def directory(path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    """A directory with these two files."""
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


# ------------------------------------------------------------------------------------------------------------- reading


def test_generation_config_outranks_config(tmp_path: Path) -> None:
    """As bart-large-cnn states it, with other values in the older place."""
    new = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "early_stopping": True}
    path = directory(tmp_path, {"num_beams": 9, "forced_eos_token_id": 2}, {**new, "max_length": 142, "min_length": 56})
    assert read_generation(path) == {**new, "max_new_tokens": 141, "min_new_tokens": 55}
    (path / "generation_config.json").unlink()
    assert read_generation(path) == {"num_beams": 9, "forced_eos_id": 2}


def test_older_directories_state_it_in_config(tmp_path: Path) -> None:
    """As Marian's do; a null says nothing."""
    words = {
        "bad_words_ids": [[58_100]],
        "num_beams": 6,
        "max_length": 512,
        "forced_eos_token_id": 0,
        "min_length": None,
    }
    assert read_generation(directory(tmp_path, words)) == {
        "suppressed_ids": [58_100],
        "num_beams": 6,
        "max_new_tokens": 511,
        "forced_eos_id": 0,
    }


def test_what_cannot_be_followed_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    stated = {"num_beam_groups": 2, "diversity_penalty": 0.0, "bad_words_ids": [[1, 2], [3]], "num_beams": 2}
    found = read_generation(directory(tmp_path, stated), lines.append)
    assert found == {"num_beams": 2, "suppressed_ids": [3]}
    assert lines == [
        f"{tmp_path / 'config.json'}: num_beam_groups, bad_words_ids cannot be followed and will not change what is "
        "generated"
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 0},
        {"num_beams": 10**9},
        {"num_beams": "many"},
        {"length_penalty": "long"},
        {"forced_bos_token_id": -1},
        {"suppress_tokens": 3},
        {"bad_words_ids": [["a"]]},
        {"early_stopping": "sometimes"},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_nonsense_is_refused_by_name(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generation_config\.json: "):
        read_generation(directory(tmp_path, {}, values))


def test_ids_that_end_a_text(tmp_path: Path) -> None:
    assert read_eos_ids(directory(tmp_path, {"eos_token_id": 5})) == (5,)
    assert read_eos_ids(directory(tmp_path, {"eos_token_id": 5}, {"eos_token_id": [7, 8]})) == (7, 8)
    assert read_eos_ids(directory(tmp_path, {"eos_token_id": 5}, {"eos_token_id": None})) == (5,)
    assert read_eos_ids(directory(tmp_path, {}, {})) == ()
    for wrong in (-1, True, "x", [1.5]):
        with pytest.raises(UserError, match="eos_token_id must be an id or a list of ids"):
            read_eos_ids(directory(tmp_path, {}, {"eos_token_id": wrong}))


# ------------------------------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_back_here_and_by_transformers(tmp_path: Path) -> None:
    config = ModelConfig(**SIZE, **FAMILIES["bart"].shape, decoder_start_id=2)
    settings = GenerationSettings(
        num_beams=5,
        length_penalty=0.6,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_id=0,
        forced_eos_id=2,
        suppressed_ids=(7, 9),
        min_new_tokens=4,
        max_new_tokens=99,
    )
    path = directory(tmp_path, {}, generation_values(settings, config))
    assert GenerationSettings(**read_generation(path)) == settings
    theirs = GenerationConfig.from_pretrained(path)
    assert (theirs.num_beams, theirs.length_penalty, theirs.early_stopping) == (5, 0.6, True)
    assert (theirs.no_repeat_ngram_size, theirs.forced_bos_token_id, theirs.forced_eos_token_id) == (3, 0, 2)
    assert (theirs.suppress_tokens, theirs.min_new_tokens, theirs.max_new_tokens) == ([7, 9], 4, 99)
    assert theirs.decoder_start_token_id == 2 and theirs.do_sample is False
    plain = generation_values(GenerationSettings(), ModelConfig(**SIZE))
    assert plain == {"max_new_tokens": 256, "do_sample": False}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_states_what_others_need(name: str, tmp_path: Path) -> None:
    """The class, the ids, whether tables are tied, and that it is an encoder-decoder, if it is one."""
    family = FAMILIES[name]
    config = ModelConfig(**{**SIZE, **family.shape})
    values = config_values(config, family, "float32", special_ids(family, TOKENIZER))
    theirs = AutoConfig.from_pretrained(directory(tmp_path, values))
    assert theirs.model_type == name and theirs.architectures == [family.architecture(config)]
    assert values["tie_word_embeddings"] is config.tied_embeddings
    assert name == "t5" or theirs.tie_word_embeddings is config.tied_embeddings  # a T5Config always says that it is
    assert theirs.eos_token_id == TOKENIZER.eos_id
    assert theirs.is_encoder_decoder == (config.kind == "encoder-decoder")
    if config.kind == "encoder-decoder":
        assert theirs.decoder_start_token_id == config.decoder_start_id
    without = config_values(config, family, "float32", special_ids(family, None))
    assert {key: without[key] for key in family.ids} == dict(family.ids)


def test_several_ids_may_end_a_text() -> None:
    assert special_ids(FAMILIES["llama"], TOKENIZER, (3, 4))["eos_token_id"] == [3, 4]
    assert special_ids(FAMILIES["llama"], TOKENIZER, (3,))["eos_token_id"] == 3


def test_broken_control_a_default_that_is_not_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A config.json without `is_encoder_decoder` or with another start is told apart by what transformers reads."""
    config = ModelConfig(**SIZE, **FAMILIES["bart"].shape, decoder_start_id=3)
    values = config_values(config, FAMILIES["bart"], "float32", {})
    assert BartConfig.from_pretrained(directory(tmp_path, values)).decoder_start_token_id == 3
    del values["decoder_start_token_id"]
    assert BartConfig.from_pretrained(directory(tmp_path, values)).decoder_start_token_id != 3
    monkeypatch.setitem(config_files.SEARCH_KEYS, "length_penalty", "num_beams")
    wrong = generation_values(GenerationSettings(num_beams=2, length_penalty=0.5), config)
    assert GenerationSettings(**read_generation(directory(tmp_path, {}, wrong))).length_penalty != 0.5


# ------------------------------------------------------------------------------------------------ sentence-transformers


def modules(*names: str) -> list[dict[str, str]]:
    """A modules.json with these modules, pooling in 1_Pooling."""
    types = (f"sentence_transformers.models.{name}" for name in names)
    return [{"path": "1_Pooling" if "Pool" in kind else "", "type": kind} for kind in types]


@pytest.mark.parametrize(
    ("listed", "pooling", "words"),
    [
        (("Transformer", "Pooling", "Normalize"), {"pooling_mode_mean_tokens": True}, []),
        (("Transformer", "Pooling"), {"pooling_mode_cls_token": True}, ["pooling_mode_cls_token"]),
        (("Transformer", "Pooling"), {"pooling_mode": "lasttoken"}, ["lasttoken"]),
        (("Transformer", "Pooling"), {"pooling_mode": "mean"}, []),
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, ['module "Dense" is not used']),
    ],
    ids=str,
)
def test_pooling_other_than_the_mean_is_told(
    listed: tuple[str, ...], pooling: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    assert pooling_notes(tmp_path) == []
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 384, **pooling}))
    (tmp_path / "modules.json").write_text(json.dumps(modules(*listed)))
    notes = pooling_notes(tmp_path)
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc", "", None, 3, "1_Pooling/.."])
def test_no_other_folder_is_looked_into(path: Any, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Pooling", "path": path}, 3, {"type": None}]))
    (tmp_path / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert all("is not used" in note for note in pooling_notes(tmp_path))
