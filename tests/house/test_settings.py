"""Every setting is explained and read; every recipe decodes, and a misspelt key in it is refused with its cure."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import pytest

from house import rules
from trivium import yaml_text
from trivium.config import Settings, build_settings, describe, load_recipe
from trivium.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
RECIPE_CLASSES = {
    "pretrain": "trivium.pretraining.recipe:PretrainRecipe",
    "finetune": "trivium.finetuning.recipe:FinetuneRecipe",
}
"""The class of a recipe, by its `stage`."""


@functools.cache
def settings_classes() -> list[type[Settings]]:
    """Every settings class of the package."""
    for module in rules.sources():
        if module != "trivium.__main__":
            importlib.import_module(module)
    found, waiting = [], [Settings]
    while waiting:
        below = [cls for cls in waiting.pop().__subclasses__() if cls.__module__.startswith("trivium.")]
        found += below
        waiting += below
    return found


def unexplained(classes: list[type[Settings]]) -> list[str]:
    return [
        f"{cls.__module__}.{cls.__name__}.{name} has no docstring"
        for cls in classes
        for name, info in cls.model_fields.items()
        if not (info.description or "").strip()
    ]


def test_every_setting_has_a_docstring() -> None:
    assert len(settings_classes()) > 3
    assert not unexplained(settings_classes())


def test_every_setting_is_read() -> None:
    fields = {cls.__name__: list(cls.__annotations__) for cls in settings_classes()}
    assert len(fields) == len(settings_classes()), "two settings classes share a name"
    complaints = rules.unread_settings(fields, rules.sources())
    assert not complaints, "\n" + "\n".join(complaints)


def test_the_control_a_setting_without_docstring_is_caught() -> None:
    class Bad(Settings):
        x: int = 1

    assert unexplained([Bad])


def test_every_settings_module_is_free_of_torch() -> None:
    """`--help` reads them; test_quick.py checks it by running the verbs, this names the file at fault."""
    for cls in settings_classes():
        text = rules.sources()[cls.__module__]
        assert "\nimport torch" not in text and "\nfrom torch" not in text, cls.__module__


def recipe_class(path: Path) -> type[Settings]:
    stage = yaml_text.parse(path.read_text()).value.get("stage", "pretrain")
    module, _, name = RECIPE_CLASSES[stage].partition(":")
    return getattr(importlib.import_module(module), name)


def keys_below(value: object, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The place of every key of a recipe."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in pairs:
        found += [(*place, key)] if isinstance(key, str) else []
        found += keys_below(item, (*place, key))
    return found


def misspelt(value: object, place: tuple[str | int, ...]) -> object:
    """The recipe with one key misspelt: its last two letters exchanged (or its last one doubled)."""
    if isinstance(value, list):
        return [misspelt(item, place[1:]) if index == place[0] else item for index, item in enumerate(value)]
    assert isinstance(value, dict)
    if len(place) == 1:
        return {misspell(key) if key == place[0] else key: item for key, item in value.items()}
    return {key: misspelt(item, place[1:]) if key == place[0] else item for key, item in value.items()}


def misspell(key: str) -> str:
    swapped = key[:-2] + key[-1] + key[-2]
    return swapped if swapped != key else key + key[-1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_decodes(path: Path) -> None:
    load_recipe(recipe_class(path), path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_misspelt_key_is_refused_with_the_nearest_right_one(path: Path) -> None:
    values = yaml_text.parse(path.read_text()).value
    cls = recipe_class(path)
    fixed = {setting.key.rpartition(".")[2] for setting in describe(cls)} | set(cls.model_fields)
    for place in keys_below(values):
        if place[-1] not in fixed:
            continue  # a key of a free mapping
        with pytest.raises(UserError) as caught:
            build_settings(cls, misspelt(values, place), path.name)
        wrong = yaml_text.dotted((*place[:-1], misspell(str(place[-1]))))
        assert f"{wrong}: unknown key; did you mean {place[-1]}?" in str(caught.value)
