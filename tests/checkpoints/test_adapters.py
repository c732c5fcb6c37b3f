"""Adapter directories against `peft`, both ways; there and back; damaged ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import peft
from families.parity import inputs, relative, shaken
from trivium.checkpoints.adapter_reading import read_adapter_files
from trivium.checkpoints.adapters import put_on, save_adapter_directory
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.peft.apply import adapter_names, adapter_state, add_adapter, load_adapter_state, remove_adapter
from trivium.peft.settings import (
    DoraSettings,
    HoulsbySettings,
    IA3Settings,
    LoraSettings,
    ParallelSettings,
    PrefixTuningSettings,
    PromptSettings,
    PTuningSettings,
    RsLoraSettings,
)

P = 4
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}
BERT = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 48}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "vocab_size": 90}


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=90)
    )


def _bloom() -> Any:
    return transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=90))


def _llama(kind: Any = transformers.LlamaForCausalLM, **more: Any) -> Any:
    return kind(transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, pad_token_id=0, **more))


MAKE: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "bloom": _bloom,
    "llama": _llama,
    "llama_classes": lambda: _llama(transformers.LlamaForSequenceClassification, num_labels=3),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "bert_classes": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3)),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, num_layers=2)),
    "t5_three": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, num_layers=3)),
}
FAMILY = {"gpt2": "gpt2", "bloom": "bloom", "llama": "llama", "bert": "bert", "t5": "t5"}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Model, Path]]:
    """(a random model of `transformers`, ours with its weights, their directory), new ones at each call."""
    made: dict[str, tuple[Any, Path]] = {}

    def base(name: str) -> tuple[Any, Model, Path]:
        if name not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(name) / "base"
            reference = shaken(MAKE[name]())
            reference.save_pretrained(folder)
            made[name] = type(reference).from_pretrained(folder).eval(), folder
        reference, folder = made[name]
        return copy.deepcopy(reference), load_weights(folder)[0], folder

    return base


def moved(model: Model, name: str = "default", seed: int = 3) -> dict[str, Tensor]:
    """An adapter with other numbers, near those it begins with."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: value + 0.2 * torch.randn(value.shape, generator=generator)
        for key, value in adapter_state(model, name).items()
    }
    load_adapter_state(model, name, tensors)
    return tensors


def shake_trainable(model: Any, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


@torch.no_grad()
def theirs(reference: Any, model: Model) -> Tensor:
    """What `transformers`, or a model of `peft`, says of the usual inputs; positions of a prompt left out."""
    given = inputs(model.config)
    if len(given) == 2:
        result = reference(input_ids=given[0], decoder_input_ids=given[1], use_cache=False).logits
    else:
        result = reference(input_ids=given[0], attention_mask=torch.ones_like(given[0])).logits
    return result[:, -given[-1].shape[1] :] if result.ndim == 3 else result


@torch.no_grad()
def ours(model: Model) -> Tensor:
    return model(*inputs(model.config))


ATTENTION = ("query", "value")
OURS: dict[str, Any] = {
    "lora": LoraSettings(rank=4, alpha=12.0),
    "lora_some": LoraSettings(rank=4, targets=ATTENTION, ranks={"*.blocks.1.*.value": 2}, alphas={"query": 3.0}),
    "rslora": RsLoraSettings(rank=4, alpha=6.0, targets=("query", "value", "down")),
    "dora": DoraSettings(rank=4, targets=("query", "key", "value", "up")),
    "dora_some": DoraSettings(rank=2, targets=ATTENTION),
    "ia3": IA3Settings(),
    "ia3_some": IA3Settings(scaled_outputs=("value",), scaled_inputs=("*.blocks.0.mlp.down",)),
    "prompt": PromptSettings(virtual_tokens=P),
    "p_tuning": PTuningSettings(virtual_tokens=P),
    "prefix": PrefixTuningSettings(virtual_tokens=P),
}
LAYERED = [(base, method) for base in MAKE if base != "t5_three" for method in OURS if method[0] in "lrdi"]
SOFT = [
    *((base, method) for base in ("gpt2", "llama", "bloom") for method in ("prompt", "p_tuning", "prefix")),
    *((base, method) for base in ("llama_classes", "bert_classes", "t5") for method in ("prompt", "p_tuning")),
    ("t5", "prefix"),
    ("t5_three", "prefix"),
]


def settings_for(base: str, method: str) -> Any:
    two = base.startswith("t5") and method == "prefix"
    return PrefixTuningSettings(virtual_tokens=P, stacks="decoder") if two else OURS[method]


@pytest.mark.parametrize(("base", "method"), [*LAYERED, *SOFT])
def test_written_here_and_opened_by_peft_and_here_again(base: str, method: str, bases: Any, tmp_path: Path) -> None:
    reference, model, folder = bases(base)
    untouched = ours(model)
    add_adapter(model, settings_for(base, method))
    tensors, expected = moved(model), None
    expected = ours(model)
    assert relative(expected, untouched) > 1e-3
    path = tmp_path / "adapter"
    save_adapter_directory(path, model, "default", base=folder, family=FAMILY[base.split("_")[0]])
    wrapped = peft.PeftModel.from_pretrained(reference, path).eval()
    assert relative(theirs(wrapped, model), expected) <= 1e-5
    _, again, _ = bases(base)
    put_on(again, read_adapter_files(path), "default")
    assert relative(ours(again), expected) <= 2e-6
    assert not any(parameter.requires_grad for parameter in again.parameters())
    save_adapter_directory(tmp_path / "second", again, "default", base=folder)
    first, second = (load_file(place / "adapter_model.safetensors") for place in (path, tmp_path / "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert tensors


TARGETS: dict[str, dict[str, list[str]]] = {
    "gpt2": {"lora": ["c_attn", "c_fc", "c_proj"], "ia3": ["c_attn", "mlp.c_proj"], "forward": ["mlp.c_proj"]},
    "bloom": {
        "lora": ["query_key_value", "dense"],
        "ia3": ["query_key_value", "dense_4h_to_h"],
        "forward": ["dense_4h_to_h"],
    },
    "llama": {
        "lora": ["q_proj", "v_proj", "down_proj"],
        "ia3": ["k_proj", "v_proj", "down_proj"],
        "forward": ["down_proj"],
    },
    "bert": {"lora": ["query", "value", "dense"], "ia3": ["key", "value", "output.dense"], "forward": ["output.dense"]},
    "t5": {"lora": ["q", "v", "wi"], "ia3": ["k", "v", "wo"], "forward": ["wo"]},
}
TASK = {"gpt2": "CAUSAL_LM", "bloom": "CAUSAL_LM", "llama": "CAUSAL_LM", "bert": None, "t5": "SEQ_2_SEQ_LM"}


def peft_config(base: str, method: str) -> Any:
    family = base.split("_")[0]
    targets, task = TARGETS[family], "SEQ_CLS" if base.endswith("classes") else TASK[family]
    if method in ("lora", "rslora", "dora"):
        more = (
            {"rank_pattern": {targets["lora"][1]: 2}, "alpha_pattern": {targets["lora"][0]: 5}}
            if method == "lora"
            else {}
        )
        return peft.LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules=targets["lora"],
            task_type=task,
            use_rslora=method == "rslora",
            use_dora=method == "dora",
            fan_in_fan_out=family == "gpt2",
            **more,
        )
    if method == "ia3":
        return peft.IA3Config(
            target_modules=targets["ia3"],
            feedforward_modules=targets["forward"],
            task_type=task,
            fan_in_fan_out=family == "gpt2",
        )
    if method == "prompt":
        return peft.PromptTuningConfig(num_virtual_tokens=P, task_type=task, num_transformer_submodules=1)
    if method == "p_tuning":
        return peft.PromptEncoderConfig(
            num_virtual_tokens=P, task_type=task, num_transformer_submodules=1, encoder_hidden_size=16
        )
    return peft.PrefixTuningConfig(num_virtual_tokens=P, task_type=task)


PEFT_METHODS = ("lora", "rslora", "dora", "ia3")
TRAINED_THERE = [
    *((base, method) for base in MAKE if base != "t5_three" for method in PEFT_METHODS),
    *SOFT,
]


@pytest.mark.parametrize(("base", "method"), TRAINED_THERE)
def test_written_by_peft_and_opened_here(base: str, method: str, bases: Any, tmp_path: Path) -> None:
    reference, model, _ = bases(base)
    untouched = ours(model)
    wrapped = peft.get_peft_model(reference, peft_config(base, method)).eval()
    shake_trainable(wrapped)
    wrapped.save_pretrained(tmp_path)
    put_on(model, read_adapter_files(tmp_path), "default")
    assert relative(ours(model), theirs(wrapped, model)) <= 1e-5
    assert relative(ours(model), untouched) > 1e-3
    remove_adapter(model, "default")
    assert torch.equal(ours(model), untouched)


@pytest.mark.parametrize("base", ["llama_classes", "bert_classes", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_what_is_trained_in_full_beside_it_goes_along(base: str, method: str, bases: Any, tmp_path: Path) -> None:
    reference, model, folder = bases(base)
    also = ("head",) if base.endswith("classes") else ("stack.norm", "*.blocks.0.attention.key")
    settings = OURS[method].model_copy(
        update={"also_train": also, **({"targets": ("up",)} if method == "lora" else {})}
    )
    add_adapter(model, settings)
    moved(model)
    save_adapter_directory(tmp_path / "a", model, "default", base=folder)
    if method == "lora" or base.endswith("classes"):  # `peft` gives prompts of language models no such modules
        wrapped = peft.PeftModel.from_pretrained(reference, tmp_path / "a").eval()
        assert relative(theirs(wrapped, model), ours(model)) <= 1e-5
    _, again, _ = bases(base)
    put_on(again, read_adapter_files(tmp_path / "a"), "default")
    assert relative(ours(again), ours(model)) <= 2e-6
    with torch.no_grad():  # broken control: without the other modules it is another model
        tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
        own = [key for key in tensors if key.endswith(("weight", "bias")) and "lora" not in key]
        assert own
        save_file(
            {key: value for key, value in tensors.items() if key not in own},
            tmp_path / "a" / "adapter_model.safetensors",
        )
    _, less, _ = bases(base)
    put_on(less, read_adapter_files(tmp_path / "a"), "default")
    assert relative(ours(less), ours(model)) > 1e-3


def test_one_shared_product_of_a_fused_layer_stays_one(bases: Any, tmp_path: Path) -> None:
    reference, model, folder = bases("gpt2")
    wrapped = peft.get_peft_model(reference, peft_config("gpt2", "lora")).eval()
    shake_trainable(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    put_on(model, read_adapter_files(tmp_path / "theirs"), "default")
    save_adapter_directory(tmp_path / "ours", model, "default", base=folder)
    one, two = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("theirs", "ours"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("llama", HoulsbySettings(bottleneck=4)),
        ("t5", ParallelSettings(bottleneck=4)),
        ("bert", PrefixTuningSettings(virtual_tokens=P)),
        ("t5", PrefixTuningSettings(virtual_tokens=P)),
    ],
)
def test_methods_that_peft_does_not_have_are_kept_and_refused_there(
    base: str, settings: Any, bases: Any, tmp_path: Path
) -> None:
    reference, model, folder = bases(base)
    add_adapter(model, settings)
    moved(model)
    save_adapter_directory(tmp_path, model, "default", base=folder)
    _, again, _ = bases(base)
    put_on(again, read_adapter_files(tmp_path), "default")
    assert torch.equal(ours(again), ours(model))
    with pytest.raises((KeyError, ValueError, TypeError)):
        peft.PeftModel.from_pretrained(reference, tmp_path)


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "method": (lambda p: edit_config(p, peft_type="LOHA"), 'peft_type is "LOHA"'),
    "unknown": (lambda p: edit_config(p, use_qalora=True), "use_qalora"),
    "bias": (lambda p: edit_config(p, bias="all"), 'bias is "all"'),
    "start": (lambda p: edit_config(p, init_lora_weights="pissa"), "pissa"),
    "rank": (lambda p: edit_config(p, r=3), "must be"),
    "alpha": (lambda p: edit_config(p, lora_alpha="much"), 'lora_alpha is "much"'),
    "expression": (lambda p: edit_config(p, alpha_pattern={"(a|a)*q_proj": 3}), "spell the modules"),
    "dora": (lambda p: edit_config(p, use_dora=True), "lora_magnitude_vector is missing"),
    "not json": (lambda p: (p / "adapter_config.json").write_text("{"), "JSON"),
    "no weights": (lambda p: (p / "adapter_model.safetensors").unlink(), "missing"),
    "pickle": (lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"), "pickle"),
    "cut": (lambda p: (p / "adapter_model.safetensors").write_bytes(b"123"), "not a whole"),
    "one missing": (lambda p: edit_tensors(p, lambda t: {k: v for k, v in t.items() if k != KEY}), "is missing"),
    "one more": (lambda p: edit_tensors(p, lambda t: t | {"base_model.model.x": t[KEY].clone()}), "unknown"),
    "other model": (
        lambda p: edit_tensors(p, lambda t: {k.replace("q_proj", "c_attn"): v for k, v in t.items()}),
        "no linear layer",
    ),
    "shape": (lambda p: edit_tensors(p, lambda t: t | {KEY: t[KEY][:, 1:].contiguous()}), "must be"),
    "integers": (lambda p: edit_tensors(p, lambda t: t | {KEY: t[KEY].long()}), "not a weight"),
    "prefix": (
        lambda p: edit_tensors(p, lambda t: {k.removeprefix("base_"): v for k, v in t.items()}),
        "does not begin",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory_is_refused_in_one_line(damage: str, bases: Any, tmp_path: Path) -> None:
    _, model, folder = bases("llama")
    add_adapter(model, LoraSettings(rank=4))
    save_adapter_directory(tmp_path, model, "default", base=folder)
    _, other, _ = bases("llama")
    change, said = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        put_on(other, read_adapter_files(tmp_path), "default")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert adapter_names(other) == ()


def test_an_adapter_takes_the_place_of_one_and_of_nothing_else(bases: Any, tmp_path: Path) -> None:
    _, model, folder = bases("llama")
    add_adapter(model, LoraSettings(rank=4))
    for _ in range(2):
        save_adapter_directory(tmp_path / "a", model, "default", base=folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no adapter"):
        save_adapter_directory(tmp_path / "b", model, "default", base=folder)
    assert (tmp_path / "b" / "letter.txt").read_text() == "mine"
