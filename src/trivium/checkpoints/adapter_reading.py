"""Reading an adapter directory (`adapters.py` says what is in it): strictly, bounded, and never a pickle.

The configs are read first: they tell the base and its head, and settings under which something else would be computed
are refused by key. Tensors are read for a base of known family and shape, and every one of them must have its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from trivium.checkpoints import adapter_names as names
from trivium.checkpoints.adapter_places import expect, number, published_weights
from trivium.checkpoints.config_files import CONFIG, read_config
from trivium.checkpoints.json_files import read_object
from trivium.checkpoints.resolve import ADAPTER, BUILT_IN, resolve_model
from trivium.checkpoints.weights_matching import WEIGHT_DTYPES
from trivium.config import Settings, build_settings
from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.reading import shown
from trivium.models.config import Head, ModelConfig
from trivium.peft.settings import PeftSettings

WEIGHTS, PICKLED, OURS = "adapter_model.safetensors", "adapter_model.bin", "trivium_adapter.json"
OWN_TYPE = "TRIVIUM_"
LARGEST_CONFIG_BYTES = 4 << 20
TASKS: dict[Head, str] = {
    "classification": "SEQ_CLS",
    "scalar": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "none": "FEATURE_EXTRACTION",
}
# Keys of adapter_config.json that are read, or change nothing in what is computed from the tensors.
KEYS = {
    "": {
        "peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode",
        "auto_mapping", "modules_to_save", "runtime_config",
    },
    "LORA": {
        "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
        "use_rslora", "use_dora", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "megatron_core",
        "qalora_group_size", "loftq_config", "eva_config", "init_lora_weights", "bias", "ensure_weight_tying",
    },
    "IA3": {"target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"},
    "PROMPT_TUNING": {
        "num_virtual_tokens", "num_transformer_submodules", "num_layers", "num_attention_heads", "token_dim",
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    },
}  # fmt: skip
KEYS["P_TUNING"] = KEYS["PROMPT_TUNING"] | {
    "encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type",
}  # fmt: skip
KEYS["PREFIX_TUNING"] = KEYS["PROMPT_TUNING"] | {"encoder_hidden_size", "prefix_projection", "init_weights"}
# Ways of drawing the first A and B that leave the base as it is.
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


class StoredMethod(Settings):
    """A method with its settings, which are those of the class it names."""

    peft: PeftSettings
    """The method."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter directory whose tensors have not been read yet."""

    path: Path
    values: Mapping[str, Any]
    """adapter_config.json."""
    own: Mapping[str, Any]
    """trivium_adapter.json; empty where it was not written here."""

    @property
    def kind(self) -> str:
        """Its `peft_type`."""
        return str(self.values["peft_type"])

    @property
    def base(self) -> str:
        """What its base is called, or where it is: paths may be relative to the adapter or to where we are."""
        name = self.values.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise UserError(f"{self.path / ADAPTER}: base_model_name_or_path must name the model the adapter is for")
        beside = self.path / name
        return str(beside) if name not in BUILT_IN and beside.exists() else name


def is_adapter(path: Path) -> bool:
    """Whether a place that `resolve_model` found is an adapter's."""
    return (path / ADAPTER).is_file() and not (path / CONFIG).is_file()


def read_adapter_files(path: str | Path) -> AdapterFiles:
    """The configs of an adapter directory; UserError for what is not known here or would be computed otherwise."""
    path = Path(path)
    file = path / ADAPTER
    values = read_object(file, LARGEST_CONFIG_BYTES)
    kind = values.get("peft_type")
    if not isinstance(kind, str) or (kind not in KEYS and not kind.startswith(OWN_TYPE)) or not kind:
        known = ", ".join(key for key in KEYS if key)
        raise UserError(f"{file}: peft_type is {shown(kind)}; known are {known}")
    if kind in KEYS:
        _refuse_values(values, kind, file)
    own = read_object(path / OURS, LARGEST_CONFIG_BYTES) if (path / OURS).is_file() else {}
    labels = own.get("labels", [])
    if own.get("head") not in (None, *get_args(Head)) or not isinstance(labels, list):
        raise UserError(f"{path / OURS}: head is {shown(own.get('head'))}: choose of {', '.join(get_args(Head))}")
    if not (path / WEIGHTS).is_file():
        pickled = (path / PICKLED).exists()
        why = f"{PICKLED} is a pickle, which is not opened: save it anew as safetensors" if pickled else "missing"
        raise UserError(f"{path / WEIGHTS}: {why}")
    return AdapterFiles(path, values, own)


def described_adapter(path: str | Path) -> tuple[ModelConfig, Path]:
    """The shape of the model that an adapter makes with its base, and where the base is; no weights are read."""
    files = read_adapter_files(path)
    base = base_path(files)
    if base.is_dir():
        family, config = read_config(base)
        head, labels = head_of(files, config)
        return (config if head is None else family.with_head(config, head, labels)), base
    from trivium.checkpoints.gguf_reading import plan_reading

    return plan_reading(base).config, base


def base_path(files: AdapterFiles) -> Path:
    """Where the base is; UserError that names the adapter."""
    try:
        base = resolve_model(files.base)
    except UserError as error:
        raise UserError(f"{files.path}: its base is not here: {error}") from None
    if is_adapter(base):
        raise UserError(f"{files.path}: its base {base} is an adapter itself: merge that one first")
    return base


def head_of(files: AdapterFiles, base: ModelConfig) -> tuple[Head | None, tuple[str, ...]]:
    """The head that the base must be given, with its labels; None: it keeps its own."""
    if files.own.get("head") is not None:
        head, labels = files.own["head"], tuple(str(label) for label in files.own.get("labels", []))
        return (None, ()) if (head, labels) == (base.head, tuple(base.labels)) else (head, labels)
    task = files.values.get("task_type")
    heads = [head for head, name in TASKS.items() if name == task]
    if not heads or base.head in heads:
        return None, ()
    if heads[0] in ("span", "none"):
        return heads[0], ()
    with _opened(files.path / WEIGHTS) as file:
        ends = (".score.weight", ".classifier.weight", ".out_proj.weight")
        rows = [file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith(ends)]  # noqa: SIM118
    if not rows:
        raise UserError(f"{files.path}: task_type is {task}, but neither base nor adapter holds such a head")
    if rows[0] == 1 and "scalar" in heads:
        return "scalar", ()
    return heads[0], tuple(f"LABEL_{number}" for number in range(rows[0]))


def read_adapter(files: AdapterFiles, family: Family, config: ModelConfig) -> tuple[PeftSettings, names.Tensors]:
    """(settings, tensors by our own names) of an adapter for a base of this family and shape."""
    where, tensors = str(files.path / WEIGHTS), _read_tensors(files.path / WEIGHTS)
    if files.kind.startswith(OWN_TYPE):
        fields = files.own.get("settings")
        if not isinstance(fields, dict) or OWN_TYPE + str(fields.get("method")).upper() != files.kind:
            raise UserError(f"{files.path / OURS}: there must be the settings of {shown(files.kind)}")
        return _settings(fields, str(files.path / OURS)), tensors
    virtual = files.kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
    before = names.PROMPTED if virtual else names.WRAPPED
    bare: names.Tensors = {}
    for key, tensor in tensors.items():
        if not key.startswith(before) and key != names.PROMPT_TENSOR:
            raise UserError(f"{where}: {shown(key)} does not begin with {before}")
        bare[key.removeprefix(before).replace(".modules_to_save.", ".")] = tensor
    published = {weight.published for weight in published_weights(family, config)}
    trained = {key: bare.pop(key) for key in list(bare) if key in published}
    if files.kind == "LORA":
        fields, state = names.low_rank_from_peft(files.values, bare, family, config, where)
    elif files.kind == "IA3":
        fields, state = names.factors_from_peft(bare, family, config, where)
    else:
        fields, state = _virtual_from_peft(files, bare, config, where)
    own = names.own_from_peft(trained, family, config, where)
    return _settings({**fields, "also_train": list(own)}, str(files.path / ADAPTER)), state | own


def _virtual_from_peft(
    files: AdapterFiles, tensors: names.Tensors, config: ModelConfig, where: str
) -> tuple[dict[str, Any], names.Tensors]:
    """(fields of our settings, our tensors) of learned positions."""
    if set(tensors) != {names.PROMPT_TENSOR} or tensors[names.PROMPT_TENSOR].ndim != 2:
        found = sorted(set(tensors) - {names.PROMPT_TENSOR})
        raise UserError(f"{where}: must hold {names.PROMPT_TENSOR}{f', not {shown(found[0])}' if found else ''}")
    whole = tensors[names.PROMPT_TENSOR]
    count = int(number(files.values, "num_virtual_tokens", str(files.path / ADAPTER)))
    if files.kind == "PREFIX_TUNING":
        if config.kind == "encoder":
            raise UserError(f"{where}: a prefix for encoders is not known from peft")
        expect(whole, (count, whole.shape[1]), names.PROMPT_TENSOR, where)
        stacks = "decoder" if config.kind == "encoder-decoder" else "all"
        fields = {"method": "prefix", "virtual_tokens": count, "stacks": stacks}
        return fields, names.prefix_from_peft(whole, config, where)
    if config.kind == "encoder-decoder" and len(whole) == 2 * count:
        whole = whole[:count]  # the other half is for the target, where `peft` puts it only if it is asked to
        if files.values.get("num_transformer_submodules") == 2 and files.values.get("task_type") == "SEQ_2_SEQ_LM":
            raise UserError(
                f"{where}: a prompt before source and target both is not known here: train it with "
                "num_transformer_submodules=1"
            )
    expect(whole, (count, config.width), names.PROMPT_TENSOR, where)
    if files.kind == "P_TUNING":
        return {"method": "p_tuning", "virtual_tokens": count}, {"prompt": whole}
    return {"method": "prompt", "virtual_tokens": count, "start": "random"}, {"prompt": whole}


def _settings(fields: Mapping[str, Any], where: str) -> PeftSettings:
    """Settings of the method that the fields name."""
    return build_settings(StoredMethod, {"peft": dict(fields)}, where).peft


def _refuse_values(values: Mapping[str, Any], kind: str, file: Path) -> None:
    """UserError for settings under which something else would be computed."""
    known = KEYS[""] | KEYS[kind]
    for key, value in values.items():
        if key not in known and value not in (None, False, "", 0) and value != {} and value != []:
            raise UserError(f"{file}: {shown(key)} is {shown(value)}, which is not known here")
    if values.get("bias", "none") != "none":
        raise UserError(f"{file}: bias is {shown(values['bias'])}: only none is known here")
    if (start := values.get("init_lora_weights")) not in STARTS:
        raise UserError(
            f"{file}: init_lora_weights={shown(start)} changed the base's own weights: convert it with peft"
        )


def _read_tensors(file: Path) -> names.Tensors:
    """All tensors of a file, in fp32."""
    found: names.Tensors = {}
    with _opened(file) as opened:
        for key in opened.keys():  # noqa: SIM118 (not a mapping)
            kind = opened.get_slice(key).get_dtype()
            if kind not in WEIGHT_DTYPES:
                raise UserError(f"{file}: {shown(key)} is stored as {kind}: not a weight")
            found[key] = opened.get_tensor(key).float()
    return found


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None
