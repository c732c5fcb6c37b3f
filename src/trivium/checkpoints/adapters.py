"""Adapter directories: the files that `peft` reads and writes.

    adapter_config.json        the method, its settings and the base model
    adapter_model.safetensors  its tensors (`adapter_names.py`)
    trivium_adapter.json       what `peft` has no words for: the head with its labels; of methods it does not have, the
                               settings
    tokenizer.json, ...        where the tokenizer is another than the base's, or has another chat template
    README.md                  what it is and how to use it

Methods that `peft` does not have, or not for these models, are stored under our own names of tensors with a `peft_type`
that it refuses, so that nobody reads them wrongly. Reading is strict and bounded as in `directory.py`: what would be
computed otherwise is refused by key, every tensor has its place and its shape, pickled files are not opened.

Invariants the tests check: an adapter written here gives equal results in `peft`, and the other way round; written and
read, it is the same to the bit; a directory is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from trivium.checkpoints import adapter_names as names
from trivium.checkpoints.adapter_places import linear_places
from trivium.checkpoints.adapter_reading import OURS, OWN_TYPE, TASKS, WEIGHTS, AdapterFiles, read_adapter
from trivium.checkpoints.json_files import write_object
from trivium.checkpoints.resolve import ADAPTER, BUILT_IN, resolve_model
from trivium.errors import UserError
from trivium.families import FAMILIES, family_for
from trivium.families.family import Family
from trivium.files import is_vacant, staged_directory
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.peft.apply import (
    active_adapter,
    adapter_names,
    adapter_of,
    adapter_state,
    add_adapter,
    load_adapter_state,
    remove_adapter,
    use_adapter,
)
from trivium.peft.settings import (
    ADDED,
    IA3Settings,
    LowRankSettings,
    PeftSettings,
    PrefixTuningSettings,
    PromptSettings,
    PTuningSettings,
    VirtualSettings,
)
from trivium.peft.targets import bare_modules, bare_parameters, linear_targets
from trivium.tokenizer.bpe import Tokenizer

LANGUAGE_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}


def save_adapter_directory(
    path: str | Path,
    model: Model,
    name: str,
    *,
    base: str | Path,
    tokenizer: Tokenizer | None = None,
    family: str = "",
) -> None:
    """Write the adapter `name` of `model`; an adapter that is there already is replaced in one step.

    `base` is the model it is for, by name or place; a local one is noted with its full path. `family` is that which the
    model was read as (empty: the first that fits). UserError for methods that add nothing, and for another content.
    """
    path = Path(path)
    settings = adapter_of(model, name).settings
    if settings.method not in ADDED:
        raise UserError(f"peft.method={settings.method} trained the model's own weights: save the model (bundle.save)")
    if (path.exists() and not path.is_dir()) or not (is_vacant(path) or (path / ADAPTER).is_file()):
        raise UserError(f"{path} exists and holds no adapter, so it is not replaced: choose another directory")
    config = model.config
    member_of = FAMILIES[family] if family else family_for(config)
    others = active_adapter(model)
    use_adapter(model, name)  # what it does not train is then the base's own
    try:
        values, tensors, own = _for_peft(model, name, member_of)
    finally:
        use_adapter(model, others)
    stated = {
        **values,
        "base_model_name_or_path": _base_name(base),
        "task_type": TASKS.get(config.head, LANGUAGE_TASKS[config.kind]),
        "inference_mode": True,
    }
    own |= {"head": config.head, "labels": list(config.labels)}
    with staged_directory(path) as stage:
        write_object(stage / ADAPTER, stated)
        write_object(stage / OURS, own)
        stored = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        save_file(stored, stage / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(stage, max_length=config.max_positions)
        numbers = sum(tensor.numel() for tensor in stored.values())
        (stage / "README.md").write_text(_card(path, settings, stated, numbers), encoding="utf-8")


def _for_peft(model: Model, name: str, family: Family) -> tuple[dict[str, Any], names.Tensors, dict[str, Any]]:
    """(adapter_config.json, tensors, trivium_adapter.json) of an adapter."""
    adapter, config = adapter_of(model, name), model.config
    settings, state = adapter.settings, adapter_state(model, name)
    trained = adapter.own_parameters(model)
    state = {key: tensor for key, tensor in state.items() if key not in trained}
    before = names.PROMPTED if isinstance(settings, VirtualSettings) else names.WRAPPED
    found = _method_for_peft(model, settings, state, family)
    if found is None:
        values: dict[str, Any] = {"peft_type": OWN_TYPE + settings.method.upper()}
        return (
            values,
            state | {key: value.detach() for key, value in trained.items()},
            {"settings": settings.model_dump(mode="json")},
        )
    values, tensors = found
    places = bare_parameters(model)
    if config.head not in ("lm", "none"):  # `peft` takes the last layer of such heads for trained, whatever was
        trained = {key: getattr(*places[key]) for key in places if key.startswith("head.output.")} | trained
    if trained:
        modules, more = names.own_to_peft(trained, lambda key: getattr(*places[key]), family, config, before)
        values, tensors = values | {"modules_to_save": modules}, tensors | more
    return values, tensors, {}


def _method_for_peft(
    model: Model, settings: PeftSettings, state: Mapping[str, Tensor], family: Family
) -> tuple[dict[str, Any], names.Tensors] | None:
    """What `peft` has for the method; None where it has nothing."""
    config, modules = model.config, bare_modules(model)
    if isinstance(settings, LowRankSettings):
        placed = {ours for place in linear_places(family, config).values() for ours in place.ours}
        if {key.rpartition(".")[0] for key in state} <= placed:
            return names.low_rank_to_peft(settings, state, family, config, lambda name: _lengths(modules[name]))
    if isinstance(settings, IA3Settings):
        inputs = linear_targets(model, settings.scaled_inputs, "scaled_inputs")
        return names.factors_to_peft(state, inputs, family, config)
    if isinstance(settings, PromptSettings | PTuningSettings):
        prompt = state["prompt"]
        kind = "PROMPT_TUNING" if isinstance(settings, PromptSettings) else "P_TUNING"
        more = {} if kind == "PROMPT_TUNING" else {"encoder_hidden_size": settings.width or config.width}  # type: ignore[union-attr]
        return _virtual_values(config, kind, len(prompt), config.width, config.layers) | more, {
            names.PROMPT_TENSOR: prompt
        }
    if isinstance(settings, PrefixTuningSettings) and config.kind != "encoder":
        stack = "stack" if config.kind == "decoder" else "decoder"
        if set(state) == {f"{stack}.prefix_keys", f"{stack}.prefix_values"}:
            whole, layers = names.prefix_to_peft(state, stack)
            width = config.kv_heads * config.head_width
            return _virtual_values(config, "PREFIX_TUNING", len(whole), width, layers), {names.PROMPT_TENSOR: whole}
    return None


def _virtual_values(config: ModelConfig, kind: str, count: int, width: int, layers: int) -> dict[str, Any]:
    prefix = kind == "PREFIX_TUNING"
    return {
        "peft_type": kind,
        "num_virtual_tokens": count,
        "token_dim": width,
        "num_layers": layers,
        "num_attention_heads": config.kv_heads if prefix else config.heads,
        "num_transformer_submodules": 2 if prefix and config.kind == "encoder-decoder" else 1,
    }


def _lengths(layer: nn.Module) -> Tensor:
    """|W| of each row, (out,)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().float().square().sum(1).sqrt().cpu()


def _base_name(base: str | Path) -> str:
    """The full path of a local model, which holds from everywhere on this machine; any other name as it is."""
    return str(resolve_model(base).resolve()) if str(base) not in BUILT_IN and Path(base).exists() else str(base)


def _card(path: Path, settings: PeftSettings, stated: Mapping[str, Any], numbers: int) -> str:
    title = (path.resolve().parent if path.name == "adapter" else path.resolve()).name
    base, known = stated["base_model_name_or_path"], not stated["peft_type"].startswith(OWN_TYPE)
    opens = "also by `peft.PeftModel.from_pretrained`" if known else "by Trivium alone: `peft` has no such method"
    return f"""---
library_name: peft
base_model: {base}
tags: [trivium, {settings.method}]
---

# {title}

An adapter ({settings.method}, {numbers:,} numbers) for `{base}`. It is opened with its base, {opens}:

```python
import trivium

bundle = trivium.load("{title}")
```

`trivium merge DIR --out MODEL` makes one model of both, where the method allows it.
"""


def put_on(model: Model, files: AdapterFiles, name: str, family: str = "") -> None:
    """Put the adapter of a directory on its base, not trainable, and make it the active one.

    UserError for what does not fit; the model is then as it was.
    """
    member_of = FAMILIES[family] if family else family_for(model.config)
    settings, tensors = read_adapter(files, member_of, model.config)
    add_adapter(model, settings, name=name, trainable=False)
    try:
        load_adapter_state(model, name, tensors)
    except UserError as error:
        remove_adapter(model, name)
        raise UserError(f"{files.path}: {error}") from None


def refuse_adapters(model: nn.Module, what: str) -> None:
    """UserError for a model that has adapters, where `what` is done with the model alone."""
    if there := adapter_names(model):
        raise UserError(
            f"this model has an adapter ({', '.join(there)}) and cannot be {what}: work it in first "
            "(bundle.merge_adapter), or keep it beside its base (bundle.save_adapter)"
        )
