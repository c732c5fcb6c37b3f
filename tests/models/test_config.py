"""A config is whole and consistent, or refused with all that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trivium.config import build_settings, dump_recipe, load_recipe
from trivium.errors import UserError
from trivium.models.config import ModelConfig

SIZES: dict[str, Any] = {"vocab_size": 100, "width": 96, "layers": 2, "heads": 6}


def test_widths_left_out_are_filled_in() -> None:
    config = ModelConfig(**SIZES)
    assert (config.kv_heads, config.head_width, config.mlp_width) == (6, 16, 256)
    assert ModelConfig(**SIZES, mlp="plain").mlp_width == 4 * 96
    assert ModelConfig(**{**SIZES, "width": 384}).mlp_width == 1024
    assert build_settings(ModelConfig, {**SIZES, "kv_heads": None}, "test") == config


def test_gated_and_plain_mlps_cost_about_the_same() -> None:
    for width in (64, 384, 1000, 4096):
        gated = 3 * ModelConfig(**{**SIZES, "width": width, "heads": 1}).mlp_width
        assert 8 * width <= gated < 8 * width + 3 * 32


def test_changed_derives_anew_what_was_derived() -> None:
    config = ModelConfig(**SIZES, mlp_width=100)
    wider = config.changed(width=192, heads=12)
    assert (wider.kv_heads, wider.head_width, wider.mlp_width) == (12, 16, 100)
    with pytest.raises(ValueError, match="does not divide"):
        config.changed(heads=5)


def test_every_mistake_is_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        build_settings(ModelConfig, {**SIZES, "width": 97, "kv_heads": 4}, "recipe.yaml")
    message = str(caught.value)
    assert "heads=6 does not divide width=97" in message
    assert "kv_heads=4 does not divide heads=6" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 90}, "head_width=15 x rope_share=1 must be even"),
        ({"width": 91, "heads": 7, "positions": "sinusoidal"}, "width=91 must be even"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"layers": 1 << 40}, "layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"norm": "rms"}, "norm"),
        ({"kv_head": 2}, "kv_heads"),
        ({"heads": True}, "heads"),
    ],
)
def test_bad_values_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_settings(ModelConfig, {**SIZES, **changes}, "recipe.yaml")


def test_survives_a_recipe(tmp_path: Path) -> None:
    config = ModelConfig(**SIZES, kv_heads=2, positions="learned", tied_embeddings=False)
    path = tmp_path / "model.yaml"
    path.write_text(dump_recipe(config))
    assert load_recipe(ModelConfig, path) == config
