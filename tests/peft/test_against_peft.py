"""Adapters of `peft` on random models of `transformers`, moved to ours: outputs, and weights after a training step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import peft
from families.parity import inputs, opened, reference_result, relative, shaken
from trivium.families import FAMILIES
from trivium.models.build import Model
from trivium.peft.apply import adapter_state, add_adapter, load_adapter_state, merge_adapter
from trivium.peft.lora import LowRank
from trivium.peft.settings import DoraSettings, IA3Settings, LoraSettings, PeftSettings, RsLoraSettings

RESULT, STEP = 1e-5, 1e-5
RANK, ALPHA = 4, 6.0
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1

REFERENCES: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ),
    "bert": lambda: BertForMaskedLM(
        BertConfig(vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=61, d_model=32, num_heads=4, d_kv=8, d_ff=40, num_layers=2, decoder_start_token_id=0)
    ),
}
# Layers that are one in both, and those of GPT-2 that are one there and three here.
SINGLE = {"gpt2": ("output", "up", "down"), "llama": ("query", "value", "gate", "down")}
SINGLE |= {"bert": ("query", "key", "output", "up"), "t5": ("query", "value", "output", "up", "down")}
FUSED = {"gpt2": ("query", "key", "value", "down")}
SCALED = {"gpt2": (("query", "key", "value"), ("down",))}
TARGETS = [*((name, SINGLE[name]) for name in REFERENCES), ("gpt2", FUSED["gpt2"])]
EVERY_TARGET = pytest.mark.parametrize(("name", "targets"), TARGETS, ids=[*REFERENCES, "gpt2, one layer for three"])
LOW_RANK: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lora": (LoraSettings, {}),
    "rslora": (RsLoraSettings, {"use_rslora": True}),
    "dora": (DoraSettings, {"use_dora": True}),
}
# Our part of a name, and how `peft` calls it.
PARTS = {"lora_a": "lora_A", "lora_b": "lora_B", "magnitude": "lora_magnitude_vector", "factors": "ia3_l"}


def matched(model: Model, folder: Path, last_parts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{published module: our modules that it is made of} of the linear layers with these last parts."""
    family = FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
    found = {}
    for weight in family.weights(model.config):
        ours = tuple(name.removesuffix(".weight") for name in weight.ours)
        inside = ".blocks." in ours[0] and weight.published.endswith(".weight")
        if inside and ours[0].rpartition(".")[2] in last_parts:
            found[weight.published.removesuffix(".weight")] = ours
    return found


def pairs(theirs: Any, model: Model, modules: dict[str, tuple[str, ...]]) -> Iterator[tuple[Tensor, list[str]]]:
    """Each tensor of their adapter and the names of ours it is shared or split between."""
    for published, ours in modules.items():
        layer = theirs.base_model.model.get_submodule(published)
        for own, part in PARTS.items():
            held = getattr(layer, part, {})
            if "default" in held:
                tensor = held["default"] if part == "ia3_l" else held["default"].weight
                yield tensor, [f"{name}.{own}" for name in ours]


def split(tensor: Tensor, names: list[str]) -> list[Tensor]:
    """Our tensors: A is shared by the layers that are one there, what belongs to outputs is split."""
    if names[0].endswith("lora_a"):
        return [tensor] * len(names)
    flat = tensor if names[0].endswith("lora_b") else tensor.flatten()
    return list(flat.chunk(len(names)))


def adapted(
    name: str, folder: Path, targets: tuple[str, ...], settings: PeftSettings, config: Any
) -> tuple[Any, Model, dict[str, tuple[str, ...]]]:
    """Their model and ours with the same random adapter; `config` gives theirs for its modules."""
    torch.manual_seed(1)
    reference = shaken(REFERENCES[name]())
    model, _ = opened(reference, folder)
    modules = matched(model, folder, targets)
    assert modules
    theirs = peft.get_peft_model(reference, config(list(modules))).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    add_adapter(model.eval(), settings)
    ours = {
        each: part.clone()
        for tensor, names in pairs(theirs, model, modules)
        for each, part in zip(names, split(tensor.detach(), names), strict=True)
    }
    load_adapter_state(model, "default", ours)
    return theirs, model, modules


def low_rank(name: str, folder: Path, targets: tuple[str, ...], method: str) -> Any:
    settings, options = LOW_RANK[method]
    return adapted(
        name,
        folder,
        targets,
        settings(rank=RANK, alpha=ALPHA, targets=targets),
        lambda modules: peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=modules, fan_in_fan_out=name == "gpt2", **options
        ),
    )


def ia3(name: str, folder: Path) -> Any:
    outputs, inputs_ = SCALED.get(name, (("key", "value"), ("down",)))
    return adapted(
        name,
        folder,
        (*outputs, *inputs_),
        IA3Settings(scaled_outputs=outputs, scaled_inputs=inputs_),
        lambda modules: peft.IA3Config(
            target_modules=modules,
            feedforward_modules=[each for each in modules if each.endswith((".mlp.c_proj", "down_proj", ".wo"))]
            + [each for each in modules if each.endswith("output.dense") and "attention" not in each],
            fan_in_fan_out=name == "gpt2",
        ),
    )


def difference(theirs: Any, model: Model) -> float:
    with torch.no_grad():
        given = inputs(model.config)
        base = theirs.base_model.model
        expected = reference_result(base, given)
        with theirs.disable_adapter():
            assert relative(expected, reference_result(base, given)) > 1e-2, "the adapter changes too little"
        return relative(model(*given), expected)


@EVERY_TARGET
@pytest.mark.parametrize("method", LOW_RANK)
def test_products_give_the_same_logits(method: str, name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    theirs, model, _ = low_rank(name, tmp_path, targets, method)
    assert difference(theirs, model) <= RESULT


@pytest.mark.parametrize("name", REFERENCES)
def test_factors_give_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs, model, _ = ia3(name, tmp_path)
    assert difference(theirs, model) <= RESULT


def test_the_controls_another_scale_and_another_matrix(tmp_path: Path) -> None:
    theirs, model, _ = low_rank("llama", tmp_path, SINGLE["llama"], "lora")
    parts = [module for module in model.modules() if isinstance(module, LowRank)]
    right = parts[0].scale
    for part in parts:
        part.scale = ALPHA / RANK**0.5
    assert difference(theirs, model) > 100 * RESULT
    for part in parts:
        part.scale = right
    assert difference(theirs, model) <= RESULT
    with torch.no_grad():
        parts[-1].lora_b.mul_(1.01)
    assert difference(theirs, model) > RESULT


def step(result: Tensor, parameters: list[Tensor]) -> None:
    """One step of AdamW down a loss that weighs every output differently."""
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    (result.log_softmax(-1) * direction).mean().backward()
    optimizer.step()


def check_step(theirs: Any, model: Model, modules: dict[str, tuple[str, ...]]) -> float:
    """The largest difference of the adapters' weights after a step on each side."""
    before = {name: tensor.clone() for name, tensor in adapter_state(model, "default").items()}
    given = inputs(model.config)
    step(reference_result(theirs.base_model.model, given), [p for p in theirs.parameters() if p.requires_grad])
    step(model(*given), [p for p in model.parameters() if p.requires_grad])
    ours = adapter_state(model, "default")
    moved = [float((ours[name] - before[name]).abs().max()) for name in before]
    assert min(moved) > LEARNING_RATE / 2, "something did not learn"
    seen, worst = 0, 0.0
    for tensor, names in pairs(theirs, model, modules):
        for each, part in zip(names, split(tensor.detach(), names), strict=True):
            worst, seen = max(worst, float((ours[each] - part).abs().max())), seen + 1
    assert seen == len(ours)
    return worst


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("method", [*LOW_RANK, "ia3"])
def test_a_training_step_gives_the_same_weights(method: str, name: str, tmp_path: Path) -> None:
    given = ia3(name, tmp_path) if method == "ia3" else low_rank(name, tmp_path, SINGLE[name], method)
    assert check_step(*given) <= STEP


def test_the_control_a_product_with_too_little_gradient_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = low_rank("llama", tmp_path, SINGLE["llama"], "lora")
    plain = LowRank.product
    monkeypatch.setattr(LowRank, "product", lambda self, x: plain(self, x.detach()))
    assert check_step(*given) > STEP


def test_ranks_and_alphas_of_single_layers_are_theirs(tmp_path: Path) -> None:
    settings = LoraSettings(
        rank=RANK,
        alpha=ALPHA,
        targets=("query", "value"),
        ranks={"blocks.0.attention.query": 2, "value": 6},
        alphas={"blocks.0.attention.query": 9.0, "value": 3.0},
    )
    theirs, model, modules = adapted(
        "llama",
        tmp_path,
        ("query", "value"),
        settings,
        lambda modules: peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=modules,
            rank_pattern={"layers.0.self_attn.q_proj": 2, "v_proj": 6},
            alpha_pattern={"layers.0.self_attn.q_proj": 9, "v_proj": 3},
        ),
    )
    found = [tensor.shape[0] for name, tensor in adapter_state(model, "default").items() if name.endswith("lora_a")]
    assert sorted(found) == [2, RANK, 6, 6]
    assert difference(theirs, model) <= RESULT
    assert check_step(theirs, model, modules) <= STEP


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("method", [*LOW_RANK, "ia3"])
def test_a_merge_gives_their_matrices(method: str, name: str, tmp_path: Path) -> None:
    given = ia3(name, tmp_path) if method == "ia3" else low_rank(name, tmp_path, SINGLE[name], method)
    theirs, model, modules = given
    merged = theirs.merge_and_unload()
    merge_adapter(model, "default")
    for published, ours in modules.items():
        matrix = merged.get_submodule(published).weight.detach()
        matrices = (matrix.T if name == "gpt2" else matrix).chunk(len(ours))
        for each, expected in zip(ours, matrices, strict=True):
            assert relative(model.get_submodule(each).weight.detach(), expected) <= RESULT  # type: ignore[union-attr,operator]
