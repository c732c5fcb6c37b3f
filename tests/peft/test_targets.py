"""Patterns and the modules they name, on bare models and on models with adapters."""

from __future__ import annotations

import pytest

from adapted_models import ADDING, CONFIGS, made
from trivium.errors import UserError
from trivium.peft.apply import add_adapter
from trivium.peft.settings import PromptSettings
from trivium.peft.targets import bare_modules, bare_parameters, linear_targets, parameters_named, value_for


def targets(name: str, *patterns: str, **changes: object) -> list[str]:
    return linear_targets(made(name, **changes), patterns, "targets")


def test_whole_names_ends_and_wildcards() -> None:
    assert targets("llama", "stack.blocks.1.mlp.up") == ["stack.blocks.1.mlp.up"]
    assert targets("llama", "up") == ["stack.blocks.0.mlp.up", "stack.blocks.1.mlp.up"]
    assert targets("llama", "blocks.0.mlp.*") == [f"stack.blocks.0.mlp.{each}" for each in ("gate", "up", "down")]
    assert targets("t5", "decoder.*.query") == [
        f"decoder.blocks.{layer}.{each}.query" for layer in (0, 1) for each in ("attention", "cross")
    ]
    assert targets("t5", "attention.key", "cross.key", "attention.key") == [
        "encoder.blocks.0.attention.key",
        "encoder.blocks.1.attention.key",
        "decoder.blocks.0.attention.key",
        "decoder.blocks.0.cross.key",
        "decoder.blocks.1.attention.key",
        "decoder.blocks.1.cross.key",
    ]
    assert targets("llama", "q[a-u]*y") == ["stack.blocks.0.attention.query", "stack.blocks.1.attention.query"]


def test_a_last_part_alone_means_the_blocks() -> None:
    untied = {"tied_embeddings": False}
    assert "head.output" in bare_modules(made("llama", **untied))
    assert targets("llama", "output", **untied) == [f"stack.blocks.{layer}.attention.output" for layer in (0, 1)]
    assert targets("llama", "head.output", **untied) == ["head.output"]
    with_layer = {"head": "classification", "labels": ("a", "b"), "head_hidden": "tanh"}
    assert targets("bert", "hidden", **with_layer) == ["head.hidden"]  # no block has one of that name


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 2 * 7), ("gpt2", 3 * 6), ("bert", 2 * 6), ("t5", 2 * 6 + 2 * 10)]
)
def test_auto_is_every_linear_layer_of_the_blocks(name: str, count: int) -> None:
    found = linear_targets(made(name), "auto", "targets")
    assert len(found) == count and all(".blocks." in each for each in found)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_those_of_the_bare_model(name: str) -> None:
    model = made(name)
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    for method, settings in {**ADDING, "prompt": PromptSettings(virtual_tokens=3)}.items():
        add_adapter(model, settings, name=method)
        found = bare_modules(model)
        assert list(found) == list(modules) and all(found[each] is modules[each] for each in modules)
        assert [getattr(*place) for place in bare_parameters(model).values()] == list(parameters.values())
        assert list(bare_parameters(model)) == list(parameters)
    assert linear_targets(model, "auto", "targets") == linear_targets(made(name), "auto", "targets")


def test_parameters_by_themselves_and_by_their_modules() -> None:
    model = made("bert")
    assert parameters_named(model, ("mlp_norm.bias",), "x") == [f"stack.blocks.{n}.mlp_norm.bias" for n in (0, 1)]
    assert len(parameters_named(model, ("blocks.1",), "x")) == 16
    assert parameters_named(model, ("embedding", "positions.weight"), "x") == [
        "embedding.weight",
        "stack.positions.weight",
    ]


def test_errors_list_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"targets: no linear layer is named 'upp': did you mean up\? there are query, key"
    ):
        targets("llama", "upp")
    with pytest.raises(UserError, match=r"there are query, key, value, output, up, down \(in full like stack.blocks.0"):
        targets("gpt2", "*.c_attn")
    with pytest.raises(UserError, match="no linear layer is named 'embedding'"):
        targets("llama", "embedding")


def test_the_last_pattern_that_matches_counts() -> None:
    values = {"up": 1, "stack.blocks.0.*": 2, "mlp.up": 3}
    assert value_for("stack.blocks.0.mlp.up", values, 9) == 3
    assert value_for("stack.blocks.0.mlp.down", values, 9) == 2
    assert value_for("stack.blocks.1.mlp.down", values, 9) == 9
