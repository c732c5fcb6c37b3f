"""A recipe fills in what its other sections state, and refuses what makes no sense before anything is loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trivium.cli.settings_help import settings_help
from trivium.config import build_settings, describe, dump_recipe, load_recipe
from trivium.data.objectives_settings import OBJECTIVES, MaskedSettings, SpansSettings
from trivium.errors import UserError
from trivium.families import FAMILIES, family_for
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain


def recipe(model: dict[str, Any], **sections: Any) -> PretrainRecipe:
    values = {
        "run": "runs/x",
        "data": {"train": "stdlib", "sequence_length": 96},
        "tokenizer": {"vocab_size": 1000},
        "model": {"width": 32, "layers": 2, "heads": 2, **model},
        "training": {"steps": 1},
        **sections,
    }
    return build_settings(PretrainRecipe, values, "test")


@pytest.mark.parametrize(
    ("model", "family", "objective"),
    [
        ({}, "llama", "causal"),
        ({"kind": "encoder"}, "bert", "masked"),
        ({"kind": "encoder-decoder"}, "t5", "spans"),
        ({"family": "roberta"}, "roberta", "masked"),
        ({"family": "marian"}, "marian", "spans"),
        ({"family": "gpt2"}, "gpt2", "causal"),
    ],
)
def test_family_kind_and_objective_follow_from_what_is_said(
    model: dict[str, Any], family: str, objective: str, tmp_path: Path
) -> None:
    found = recipe(model)
    assert found.model.kind == FAMILIES[family].kind and found.objective.name == objective
    assert not FAMILIES[family].obstacles(found.model)
    assert (found.model.vocab_size, found.model.max_positions) == (1000, 96)
    (tmp_path / "saved.yaml").write_text(dump_recipe(found))
    assert load_recipe(PretrainRecipe, tmp_path / "saved.yaml") == found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_asked_for(family: str) -> None:
    assert family_for(recipe({"family": family}).model).kind == FAMILIES[family].kind


def test_what_a_recipe_states_comes_before_what_its_family_has() -> None:
    assert recipe({"family": "bert", "max_positions": 177, "norm_eps": 1e-6}).model.max_positions == 177


@pytest.mark.parametrize(
    ("model", "sections", "message"),
    [
        ({"family": "brt"}, {}, r"model.family: 'brt' is no family; did you mean bert\?"),
        ({"family": "bert", "kind": "decoder"}, {}, "model.family=bert is of kind encoder, not decoder"),
        ({}, {"objective": "masked"}, "a decoder sees the past only"),
        ({"kind": "encoder"}, {"objective": "causal"}, "an encoder sees the token it is to predict"),
        ({"kind": "encoder-decoder"}, {"objective": {"name": "masked"}}, "`spans` and `denoise` restore"),
        ({}, {"objective": {"name": "spans"}}, "a decoder has one stack for one text"),
        ({"kind": "encoder"}, {"objective": "spans"}, "and an encoder has one stack for one text"),
        (
            {},
            {"objective": {"name": "causal", "whole_words": True}},
            r"objective\.whole_words: objective\.name=causal has no such setting, only masked$",
        ),
        ({"family": "gpt2", "max_positions": 64}, {}, r"sequence_length=96, but model\.max_positions=64 .* learned"),
        ({}, {"objective": {"name": "pair"}}, r"objective: name must be one of .*did you mean pairs\?"),
        ({"kind": "encoder"}, {"objective": {"name": "masked", "mask_shar": 0.1}}, "did you mean mask_share"),
        ({"head": "none"}, {}, "model.head=none has no token scores"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    model: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recipe(model, **sections)


def test_a_shape_that_nothing_could_open_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    data = {"train": str(tmp_path / "absent"), "sequence_length": 96}
    shape = {"kind": "encoder", "positions": "alibi"}
    with pytest.raises(UserError, match="no published family has models of this shape"):
        pretrain(recipe(shape, run=str(tmp_path / "run"), data=data))
    assert not (tmp_path / "run").exists()


def test_help_shows_the_settings_of_every_objective() -> None:
    settings = {setting.key: setting for setting in describe(PretrainRecipe)}
    assert {"objective.name", "objective.mask_share", "objective.mean_span", "objective.languages"} <= settings.keys()
    assert settings["objective.name"].type == "one of: " + ", ".join(OBJECTIVES)
    assert settings["objective.mask_share"].default == "0.15 or 0.0", "of masked, of denoise"
    assert settings["objective.mean_span"].default == "3.0"
    assert settings["model.kind"].type == "one of: decoder, encoder, encoder-decoder"
    assert "one of: masked\n" not in settings_help(PretrainRecipe)


@pytest.mark.parametrize("written", ["objective: masked", "objective: {name: masked}"])
def test_an_override_goes_below_an_objective_that_is_a_name_alone(written: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run: runs/x\n{written}\ndata: {{train: stdlib}}\ntraining: {{steps: 1}}\n"
        "model: {kind: encoder-decoder, width: 32, layers: 2, heads: 2}\n"
    )
    load = partial(load_recipe, PretrainRecipe, path)
    assert load(["objective.name=spans", "objective.mean_span=5"]).objective == SpansSettings(mean_span=5)
    encoder = ["model.kind=encoder", "objective.mask_share=0.3"]
    assert load(encoder).objective == MaskedSettings(mask_share=0.3)
    assert load(["objective=spans"]).objective == SpansSettings()
    with pytest.raises(UserError, match=r"run is 'runs/x', not a section"):
        load(["run.name=x"])


def test_the_saved_recipe_explains_the_objective_that_it_has() -> None:
    text = dump_recipe(recipe({"kind": "encoder"}))
    assert "  # Masked language modelling (Devlin et al., 2019), drawn anew in each epoch (Liu et al., 2019).\n" in text
    assert '  name: "masked"\n' in text or "  name: masked\n" in text
