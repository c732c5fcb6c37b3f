"""A config is whole and consistent, or refused with all that is wrong with it."""

from __future__ import annotations

import re
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


DECODER = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 2}
TWO_STACKS = {**DECODER, "kind": "encoder-decoder"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**DECODER, "decoder_layers": 3}, "decoder_layers is for kind=encoder-decoder"),
        ({**TWO_STACKS, "sliding_window": 3}, "sliding_window is not for an encoder-decoder"),
        ({**TWO_STACKS, "segment_types": 2}, "segment_types is not for an encoder-decoder"),
        ({**TWO_STACKS, "decoder_start_id": 50}, "is beyond vocab_size=50"),
        ({**TWO_STACKS, "residual": "parallel"}, "residual=parallel needs"),
        ({**DECODER, "residual": "parallel", "norm_placement": "post"}, "residual=parallel needs"),
        ({**DECODER, "norm_first_attention": False, "norm_placement": "post"}, "norm_first_attention=false needs"),
        ({**DECODER, "head": "classification"}, "needs labels"),
        ({**DECODER, "labels": ["a"]}, "labels need head=classification"),
        ({**DECODER, "head": "none", "head_bias": True}, "head_bias needs a head"),
        ({**DECODER, "head": "span", "logit_softcap": 2.0}, "logit_scale and logit_softcap need head=lm"),
        ({**DECODER, "positions": "learned", "local_rope_theta": 100.0}, "need positions=rotary"),
        ({**DECODER, "local_rope_theta": 0.5}, "local_rope_theta=0.5 must be above 1"),
        ({**DECODER, "position_offset": 2}, "position_offset needs positions=learned"),
        ({**DECODER, "full_attention_layers": [0]}, "full_attention_layers needs a sliding_window"),
        ({**DECODER, "sliding_window": 3, "full_attention_layers": [2]}, "there are 0 to 1"),
        ({**DECODER, "positions": "relative", "relative_buckets": 6}, "must be a multiple of 4"),
        ({**DECODER, "positions": "relative", "relative_max_distance": 16}, "must be above half of"),
        ({**DECODER, "embedding_scale": 1e300}, "embedding_scale"),
        ({**DECODER, "rope_scaling": {"method": "ntk", "factor": 1e300}}, "factor"),
        ({**DECODER, "rope_scaling": {"method": "yarn", "factor": 2}}, "needs original_max_positions"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_settings(ModelConfig, values, "model")


def test_what_was_left_at_zero_is_derived_anew() -> None:
    stated = ModelConfig(**DECODER, kv_heads=0, mlp_width=0, head_width=0)
    wider = stated.changed(width=128, heads=8)
    assert (wider.kv_heads, wider.head_width) == (8, 16)
    assert wider.mlp_width == ModelConfig(**{**DECODER, "width": 128}).mlp_width
    deeper = ModelConfig(**TWO_STACKS, decoder_layers=0).changed(layers=4)
    assert deeper.decoder_layers == 4
    scaled = ModelConfig(**DECODER, embedding_scale=0, logit_scale=0).changed(width=64)
    assert (scaled.embedding_scale, scaled.logit_scale) == (8.0, 0.125)
