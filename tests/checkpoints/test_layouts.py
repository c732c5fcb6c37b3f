"""The six layouts: against what numpy makes of them, there and back bit for bit, in every dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from trivium.checkpoints import layouts
from trivium.checkpoints.layouts import join, published_shape, split
from trivium.families.family import Weight
from trivium.models.config import ModelConfig

# Grouped heads whose width is not the model's: 4 heads of 6 and 2 key/value heads, D = 10, F = 7.
GROUPED = ModelConfig(vocab_size=11, width=10, layers=1, heads=4, kv_heads=2, head_width=6, mlp_width=7)
PLAIN = GROUPED.changed(kv_heads=4)
QKV = tuple(f"stack.blocks.0.attention.{name}.weight" for name in ("query", "key", "value"))
QKV_BIAS = tuple(name.replace("weight", "bias") for name in QKV)
GATED = ("stack.blocks.0.mlp.gate.weight", "stack.blocks.0.mlp.up.weight")

SHAPES = {
    **dict(zip(QKV, [(24, 10), (12, 10), (12, 10)], strict=True)),
    **dict(zip(QKV_BIAS, [(24,), (12,), (12,)], strict=True)),
    **dict.fromkeys(GATED, (7, 10)),
    "embedding.weight": (11, 10),
    "head.bias": (11,),
}


def by_head(parts: list[np.ndarray]) -> np.ndarray:
    """Head by head, its query rows, its key rows, its value rows: written without reshaping."""
    rows = [part[6 * head : 6 * head + 6] for head in range(4) for part in parts]
    return np.concatenate(rows)


CASES: dict[str, tuple[Weight, ModelConfig, Callable[[list[np.ndarray]], np.ndarray]]] = {
    "same": (Weight("x", ("embedding.weight",)), GROUPED, lambda p: p[0]),
    "transposed": (Weight("x", (QKV[0],), "transposed"), GROUPED, lambda p: np.ascontiguousarray(p[0].T)),
    "stacked": (Weight("x", QKV, "stacked"), GROUPED, np.concatenate),
    "stacked biases": (Weight("x", QKV_BIAS, "stacked"), GROUPED, np.concatenate),
    "stacked gate": (Weight("x", GATED, "stacked"), GROUPED, np.concatenate),
    "stacked_transposed": (Weight("x", QKV, "stacked_transposed"), GROUPED, lambda p: np.concatenate(p).T),
    "stacked_by_head": (Weight("x", QKV, "stacked_by_head"), PLAIN, by_head),
    "biases by head": (Weight("x", QKV_BIAS, "stacked_by_head"), PLAIN, by_head),
    "row": (Weight("x", ("head.bias",), "row"), GROUPED, lambda p: p[0][None]),
}


def drawn(weight: Weight, config: ModelConfig) -> tuple[dict[str, tuple[int, ...]], list[Tensor]]:
    shapes = dict(SHAPES)
    if config is PLAIN:
        shapes |= {name: (24, *shape[1:]) for name, shape in shapes.items() if "attention" in name}
    generator = torch.Generator().manual_seed(0)
    return shapes, [torch.randn(shapes[name], generator=generator) for name in weight.ours]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def agrees(name: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether join is what numpy makes, has the shape foretold, and split gives the parts back bit for bit."""
    weight, config, reference = CASES[name]
    shapes, parts = drawn(weight, config)
    joined = layouts.join(weight, [part.to(dtype) for part in parts], config)
    expected = torch.from_numpy(np.ascontiguousarray(reference([part.numpy() for part in parts]))).to(dtype)
    if tuple(joined.shape) != published_shape(weight, shapes) or bits(joined) != bits(expected):
        return False
    back = layouts.split(weight, joined, config)
    return all(
        one.shape == part.shape and one.is_contiguous() and bits(one) == bits(part.to(dtype))
        for one, part in zip(back, parts, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", list(CASES))
def test_there_and_back(name: str, dtype: torch.dtype) -> None:
    assert agrees(name, dtype)


def test_every_layout_has_a_case() -> None:
    from typing import get_args

    from trivium.families.family import Layout

    assert {weight.layout for weight, _, _ in CASES.values()} == set(get_args(Layout))


def test_what_is_stored_as_it_is_is_not_copied() -> None:
    weight, config, _ = CASES["same"]
    _, (tensor,) = drawn(weight, config)
    assert join(weight, [tensor], config).data_ptr() == tensor.data_ptr()
    assert split(weight, tensor, config)[0].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("name", "takes_for"),
    [
        ("stacked_by_head", "stacked"),
        ("stacked_transposed", "stacked"),
        ("transposed", "same"),
        ("stacked", "stacked_by_head"),
    ],
)
def test_broken_control_one_layout_taken_for_another(
    name: str, takes_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, name, (CASES[name][0], PLAIN, CASES[name][2]))
    real = layouts.join
    assert agrees(name)
    monkeypatch.setattr(layouts, "join", lambda w, t, c: real(w._replace(layout=takes_for), t, c))
    assert not agrees(name)


def test_broken_control_parts_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layouts.split
    monkeypatch.setattr(layouts, "split", lambda w, t, c: real(w, t, c)[::-1])
    assert [name for name in CASES if agrees(name)] == ["same", "transposed", "row"]
