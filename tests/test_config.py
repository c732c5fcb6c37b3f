"""Recipes: exact round trip, every mistake at once with its place and cure, and nothing ever ignored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from trivium import yaml_text
from trivium.config import Settings, build_settings, describe, dump_recipe, load_recipe
from trivium.errors import UserError


class Optimizer(Settings):
    """How weights move."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""
    schedule: Literal["cosine", "linear", "none"] = "cosine"
    """Shape of the learning rate over time."""


class Source(Settings):
    """Where text comes from."""

    path: Path
    """File to read."""
    weight: float | None = None
    """Relative to the others."""


class Recipe(Settings):
    """A recipe with one field of each kind."""

    name: str
    """What the run is called, in a
    sentence of two lines."""
    steps: int = 100
    """Optimizer steps."""
    tied: bool = True
    """Whether two matrices are one."""
    kv_heads: int | None = None
    """Null means as many as heads."""
    layers: int | Literal["auto"] = "auto"
    """How many."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    final: Optimizer | None = None
    """Another optimizer for the end."""
    sources: tuple[Source, ...] = ()
    """Texts."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weights by name."""

    @model_validator(mode="after")
    def _steps(self) -> Recipe:
        if self.steps == 13:
            raise ValueError("steps: 13 is not allowed")
        return self


@pytest.fixture
def recipe(tmp_path: Path):
    """Write a recipe and load it; mistakes come back as a list of lines without the folder's name."""

    def load(text: str | bytes, *overrides: str) -> Any:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return load_recipe(Recipe, path, overrides)
        except UserError as error:
            return str(error).replace(f"{tmp_path}/", "").splitlines()

    return load


def test_every_mistake_at_once_with_place_and_cure(recipe) -> None:
    text = """name: 12
stepz: 3
tied: true
tied: false
kv_heads: None
layers: autoo
optimizer:
  learning_rte: 1
  schedule: cosin
  betas: [1]
sources:
  - {weight: heavy}
weights: 3
"""
    assert recipe(text, "optimizer.learning_rate=-1", "learning_rat=2", "sources.4.path=x", "steps") == [
        "recipe.yaml:4: tied: written twice (first on line 3)",
        "override sources.4.path=x: sources is a list of 1; name an item by 0, 1, ...",
        "override steps: write it as key=value, for example steps=...",
        "recipe.yaml:1: name: must be a valid string, not 12",
        "recipe.yaml:5: kv_heads: must be a valid integer, not 'None'; write null for none",
        "recipe.yaml:6: layers: must be a valid integer or must be one of auto, not 'autoo'; did you mean auto?",
        "override optimizer.learning_rate=-1: optimizer.learning_rate: must be greater than 0, not -1",
        "recipe.yaml:10: optimizer.betas.1: is missing; the list needs an item more",
        "recipe.yaml:9: optimizer.schedule: must be one of cosine, linear, none, not 'cosin'; did you mean cosine?",
        "recipe.yaml:8: optimizer.learning_rte: unknown key; did you mean learning_rate?",
        "recipe.yaml:12: sources.0.path: is missing: File to read.",
        "recipe.yaml:12: sources.0.weight: must be a valid number, not 'heavy'",
        "recipe.yaml:13: weights: is a section, not 3; its keys are free to choose",
        "recipe.yaml:2: stepz: unknown key; did you mean steps?",
        "override learning_rat=2: learning_rat: unknown key; did you mean optimizer.learning_rate or "
        "final.learning_rate?",
    ]


def test_the_control_a_lax_class_lets_the_misspelling_pass(tmp_path: Path) -> None:
    class Lax(Recipe, extra="ignore"):
        pass

    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nstepz: 3\n")
    assert load_recipe(Lax, path).steps == 100
    with pytest.raises(UserError, match="stepz: unknown key; did you mean steps"):
        load_recipe(Recipe, path)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("steps: 1_000", ("steps", 1000)),
        ("steps: 1e3", ("steps", 1000)),
        ("steps: 010", ("steps", 10)),
        ("steps: 0x10", ("steps", 16)),
        ("optimizer: {learning_rate: 1e-4}", ("learning_rate", 1e-4)),
        ("optimizer: {learning_rate: 2E+1}", ("learning_rate", 20.0)),
        ("optimizer: {learning_rate: .5}", ("learning_rate", 0.5)),
        ("optimizer: {learning_rate: 3}", ("learning_rate", 3.0)),
        ("optimizer: {schedule: none}", ("schedule", "none")),
        ("tied: no", ("tied", False)),
        ("tied: off", ("tied", False)),
        ("tied: yes", ("tied", True)),
        ("kv_heads:", ("kv_heads", None)),
        ("kv_heads: ~", ("kv_heads", None)),
    ],
)
def test_words_and_numbers_mean_what_they_look_like(recipe, written: str, value: tuple[str, Any]) -> None:
    loaded = recipe(f"name: x\n{written}\n")
    holder = loaded if hasattr(loaded, value[0]) else loaded.optimizer
    assert getattr(holder, value[0]) == value[1]


@pytest.mark.parametrize(
    "word", ["no", "off", "yes", "y", "2001-01-01", "1:30", "007", "1.2.3", "<<", "null_", "=", "on"]
)
def test_words_stay_words(recipe, word: str) -> None:
    assert recipe(f"name: {word}").name == word


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("steps: true", "recipe.yaml:2: steps: must be a number, not true"),
        ("steps: 1.5", "recipe.yaml:2: steps: must be a valid integer, got a number with a fractional part, not 1.5"),
        ("optimizer: {learning_rate: .nan}", "must be a finite number, not nan"),
        ("optimizer: {learning_rate: .inf}", "must be a finite number, not inf"),
        ("optimizer: 3", "optimizer: is a section, not 3; its keys are learning_rate, betas, schedule"),
        ("optimizer:", "optimizer: is a section, not null"),
        ("steps: 13", "recipe.yaml: steps: 13 is not allowed"),
        ("tied: maybe", "tied: must be a valid boolean, not 'maybe'"),
        ("a: &x 1\nb: *x", "line 3: not valid YAML: aliases (*name) are not read: write the value out"),
        ("a: !!python/object/apply:os.system [ls]", "is not read"),
        ("kv_heads: !!python/name:os.system x", "is not read"),
        ("\tsteps: 1", "line 2: not valid YAML: a tab indents this line; use spaces"),
        ("title: a: b", "put quotes around a text that holds ': '"),
        ("? [a]\n: 1", "a key must be a plain word"),
        ("--- 1", "expected a single document"),
        ("steps: " + "9" * 5000, "this number cannot be read"),
        ("x: " + "[" * 5000, "nested too deeply"),
        ("#" * yaml_text.MAX_BYTES, "larger than"),
    ],
)
def test_what_is_refused(recipe, written: str, wrong: str) -> None:
    lines = recipe(f"name: x\n{written}\n")
    assert isinstance(lines, list), lines
    assert wrong in "\n".join(lines)


def test_files_that_are_no_recipes(recipe, tmp_path: Path) -> None:
    assert recipe(b"\xff\xfe") == ["recipe.yaml: not UTF-8 text (byte 0); is this a recipe?"]
    assert recipe("- 1") == ["recipe.yaml: a recipe is made of `key: value` lines, and this file is not"]
    assert recipe("") == ["recipe.yaml: name: is missing: What the run is called, in a sentence of two lines."]
    with pytest.raises(UserError, match=r"no such recipe; did you mean .*recipe\.yaml\?"):
        load_recipe(Recipe, tmp_path / "recipes.yaml")
    with pytest.raises(UserError, match="this is a folder"):
        load_recipe(Recipe, tmp_path)


def test_overrides(recipe) -> None:
    text = "name: x\nsources: [{path: a}, {path: b}]\noptimizer: {betas: [0.1, 0.2]}\n"
    loaded = recipe(
        text,
        "name='no: it is'",
        "optimizer.learning-rate=1e-3",
        "optimizer.betas=[0.8, 0.9]",
        "--tied=off",
        "kv_heads=null",
        "sources.1.weight=2",
        "final.schedule=linear",
        "weights={a: 1}",
        "steps=7",
        "steps=8",
    )
    assert loaded == Recipe(
        name="no: it is",
        tied=False,
        steps=8,
        optimizer=Optimizer(learning_rate=1e-3, betas=(0.8, 0.9)),
        final=Optimizer(schedule="linear"),
        sources=(Source(path=Path("a")), Source(path=Path("b"), weight=2.0)),
        weights={"a": 1.0},
    )
    assert recipe(text, "name.x=1") == ["override name.x=1: name is 'x', not a section"]
    assert recipe(text, "steps={a: b: c}")[0].startswith("override steps={a: b: c}: line 1: not valid YAML")


def test_settings_from_a_mapping_leave_it_alone() -> None:
    values = {"name": "x", "optimizer": {"learning_rate": 1}, "sources": [{"path": "a"}]}
    before = repr(values)
    built = build_settings(Recipe, values, "my settings", ["optimizer.learning_rate=2", "sources.0.weight=1"])
    assert (built.optimizer.learning_rate, built.sources[0].weight) == (2.0, 1.0)
    assert repr(values) == before
    with pytest.raises(UserError, match=r"my settings: nam: unknown key; did you mean name\?"):
        build_settings(Recipe, {"nam": "x"}, "my settings")


floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=30)
recipes = st.builds(
    Recipe,
    name=texts,
    steps=st.integers().filter(lambda n: n != 13),
    kv_heads=st.none() | st.integers(),
    layers=st.just("auto") | st.integers(),
    optimizer=st.builds(Optimizer, learning_rate=floats.filter(lambda x: x > 0), betas=st.tuples(floats, floats)),
    final=st.none() | st.just(Optimizer(schedule="none")),
    sources=st.lists(st.builds(Source, path=texts.filter(bool).map(Path), weight=st.none() | floats), max_size=2).map(
        tuple
    ),
    weights=st.dictionaries(texts, floats, max_size=2),
)
AWKWARD = [
    *(
        "no",
        "1e-4",
        "null",
        "~",
        "",
        " x ",
        "a: b",
        "#",
        "- a",
        "[",
        "'",
        '"',
        "\n",
        "\t",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
    ),
    *("true", "1_0", "0x1", ".inf", "<<", "=", "*a", "&a", "!a", "%a", "@a", "`a", "?", "---", "...", "1:30", "…", "|"),
]


@settings(max_examples=150, deadline=None)
@given(recipes, st.booleans())
def test_round_trip(value: Recipe, comments: bool) -> None:
    assert_round_trip(value, dump_recipe(value, comments))


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_of_awkward_texts(text: str) -> None:
    value = Recipe(name=text, weights={text: 1e22}, sources=(Source(path=Path("x" + text)),))
    assert_round_trip(value, dump_recipe(value))


def assert_round_trip(value: Recipe, text: str) -> None:
    parsed = yaml_text.parse(text)
    assert not parsed.mistakes
    assert build_settings(Recipe, parsed.value, "recipe") == value


@pytest.mark.parametrize("text", ["no", "1e-4", "a: b", "\x85"])
def test_the_control_a_naive_writer_breaks_the_round_trip(text: str) -> None:
    value = Recipe(name=text)
    naive = "".join(f"{key}: {item}\n" for key, item in value.model_dump(mode="json").items() if key == "name")
    if text in ("no",):  # read here by the rules of YAML 1.2, so right; PyYAML's own rules make it False
        assert yaml.safe_load(naive) == {"name": False}
        assert yaml.safe_load(dump_recipe(value))["name"] == text
        return
    with pytest.raises((AssertionError, UserError)):
        assert_round_trip(value, naive)


def test_a_plain_yaml_reader_reads_what_is_written() -> None:
    value = Recipe(name="no", optimizer=Optimizer(learning_rate=1e-300, betas=(1e22, 5e-324)))
    read = yaml.safe_load(dump_recipe(value))
    assert read == value.model_dump(mode="json")
    assert all(isinstance(beta, float) for beta in read["optimizer"]["betas"])


def test_the_saved_recipe_explains_itself() -> None:
    text = dump_recipe(Recipe(name="x", sources=(Source(path=Path("a")),)))
    assert "# What the run is called, in a sentence of two lines.\nname: x\n" in text
    assert "optimizer:\n  # Highest learning rate.\n  learning_rate: 0.0003\n" in text
    assert "#" not in dump_recipe(Recipe(name="x"), comments=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text("name: x\nsteps[]{},&*!|>'\"%@`-?1e.#\t", max_size=60).map(str.encode))
def test_whatever_the_bytes_the_outcome_is_settings_or_a_clear_refusal(recipe, data: bytes) -> None:
    outcome = recipe(data)
    assert isinstance(outcome, Recipe) or all(line.startswith("recipe.yaml") for line in outcome)


def test_describe() -> None:
    described = {setting.key: setting for setting in describe(Recipe)}
    assert list(described)[:3] == ["name", "steps", "tied"]
    assert described["name"].default is None
    assert described["optimizer.learning_rate"].type == "float > 0"
    assert described["optimizer.learning_rate"].default == "0.0003"
    assert described["optimizer.schedule"].type == "one of: cosine, linear, none"
    assert described["kv_heads"].type == "int or null"
    assert described["sources"].type == "list of sections"
    assert described["sources.N.path"].doc == "File to read."
    assert described["optimizer.betas"].default == "[0.9, 0.95]"
    assert described["weights"].type == "text to float"


def test_settings_are_frozen_and_described_for_editors() -> None:
    value = Recipe(name="x")
    with pytest.raises(ValidationError):
        value.steps = 3  # type: ignore[misc]
    assert Recipe.model_json_schema()["properties"]["steps"]["description"] == "Optimizer steps."
    assert math.isclose(value.optimizer.learning_rate, 3e-4)
