"""config.json and generation_config.json: what a model is, and how it generates by default.

The shape is read and written by the model's family; here are what all families have in common: which family it is, the
ids of special tokens, and the settings of generation. Unknown families, ids that are none and settings out of range are
refused in one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.checkpoints.json_files import read_json, read_object
from trivium.config import build_settings
from trivium.errors import UserError, nearest
from trivium.families import FAMILIES, family_for
from trivium.families.family import Family
from trivium.families.reading import shown
from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.quantization.schemes import Scheme

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

CONFIG, GENERATION, MODULES = "config.json", "generation_config.json", "modules.json"
LARGEST_CONFIG_BYTES = 1 << 20
QUANTIZATION, QUANT_METHOD = "quantization_config", "trivium"

Note = Callable[[str], None]

# Their key: our setting. With one beam the two of scoring have no effect.
SEARCH_KEYS = {
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "forced_bos_token_id": "forced_bos_id",
    "forced_eos_token_id": "forced_eos_id",
    "min_new_tokens": "min_new_tokens",
    "suppress_tokens": "suppressed_ids",
}
ONLY_WITH_BEAMS = ("length_penalty", "early_stopping")
# What would change a generated text and has no setting here, with the value that changes nothing.
UNUSED_KEYS = {"num_beam_groups": 1, "diversity_penalty": 0.0, "encoder_no_repeat_ngram_size": 0}


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The family and the shape that a directory's config.json, or a file of such contents, states."""
    file = path if path.is_file() else path / CONFIG
    values = read_object(file, LARGEST_CONFIG_BYTES)
    if _quantized_here(values):
        del values[QUANTIZATION]
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        near = nearest(shown(model_type), FAMILIES)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{file}: model_type is {shown(model_type)}; supported are {', '.join(FAMILIES)}{hint}")
    return FAMILIES[model_type], FAMILIES[model_type].read_config(values, str(file))


def read_scheme(path: Path) -> Scheme | None:
    """How the matrices of a directory are packed; None: they are not. UserError for packed forms of others."""
    file = path if path.is_file() else path / CONFIG
    values = read_object(file, LARGEST_CONFIG_BYTES)
    if not _quantized_here(values):  # those of others are refused with the rest of the config
        return None
    stated = {key: value for key, value in values[QUANTIZATION].items() if key != "quant_method"}
    scheme = build_settings(Scheme, stated, f"{file}: {QUANTIZATION}")
    if not scheme.packs:
        raise UserError(f"{file}: {QUANTIZATION} says {scheme.format}, which packs nothing")
    return scheme


def scheme_values(scheme: Scheme) -> dict[str, Any]:
    """The same for config.json; other software refuses the method's name instead of misreading the weights."""
    return {QUANTIZATION: {"quant_method": QUANT_METHOD, **scheme.model_dump(mode="json")}}


def _quantized_here(values: Mapping[str, Any]) -> bool:
    stated = values.get(QUANTIZATION)
    return isinstance(stated, dict) and stated.get("quant_method") == QUANT_METHOD


def chosen_family(config: ModelConfig, name: str | None) -> Family:
    """The family to save a model as: the one named, if its config allows, else the first that has such models."""
    if name is None:
        return family_for(config)
    if name not in FAMILIES:
        near = nearest(name, FAMILIES)
        raise UserError(f"there is no family {name}; " + (f"did you mean {near}?" if near else ", ".join(FAMILIES)))
    if obstacles := FAMILIES[name].obstacles(config):
        raise UserError(f"the model is no {name}: {', '.join(obstacles)}")
    return FAMILIES[name]


def config_values(
    config: ModelConfig, family: Family, dtype_name: str, ids: Mapping[str, int | list[int] | None]
) -> dict[str, Any]:
    """All of config.json; what the family itself says of ids outranks `ids`."""
    values = {"architectures": [family.architecture(config)], "model_type": family.model_type}
    common: dict[str, Any] = {**ids, "tie_word_embeddings": config.tied_embeddings, "dtype": dtype_name}
    if config.kind != "encoder":
        common["use_cache"] = True
    if config.kind == "encoder-decoder":
        common |= {"is_encoder_decoder": True, "decoder_start_token_id": config.decoder_start_id}
    return {**values, **common, **family.write_config(config)}


def special_ids(
    family: Family, tokenizer: Tokenizer | None, eos_ids: Sequence[int] = ()
) -> dict[str, int | list[int] | None]:
    """The ids of special tokens for both files: those of the tokenizer, else those of the published vocabulary."""
    ids: dict[str, int | list[int] | None] = {**family.ids}
    if tokenizer is not None:
        named = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        }
        ids |= {key: value for key, value in named.items() if value is not None or key not in ids}
    if eos_ids:
        ids["eos_token_id"] = list(eos_ids) if len(eos_ids) > 1 else eos_ids[0]
    return ids


def read_eos_ids(path: Path) -> tuple[int, ...]:
    """The ids that end a text by generation_config.json, else by config.json; empty when neither says."""
    for file, values in _both(path):
        ids = values.get("eos_token_id")
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(number) is int and number >= 0 for number in ids):
                raise UserError(f"{file}: eos_token_id must be an id or a list of ids")
            return tuple(ids)
    return ()


def read_generation(path: Path, note: Note = lambda line: None) -> dict[str, Any]:
    """The fields of `GenerationSettings` that a directory states for an encoder-decoder.

    They stand in generation_config.json; older directories have no such file and state them in config.json. `note` is
    told of settings that have no counterpart here.
    """
    file, values = _both(path)[0]
    stated = {key: value for key, value in values.items() if value is not None}
    fields = {ours: stated[theirs] for theirs, ours in SEARCH_KEYS.items() if theirs in stated}
    # Their lengths count the token that a target begins with.
    lengths = {"max_length": ("max_new_tokens", 1), "min_length": ("min_new_tokens", 0)}
    for theirs, (ours, least) in lengths.items():
        if type(stated.get(theirs)) is int:
            fields.setdefault(ours, max(least, stated[theirs] - 1))
    if "max_new_tokens" in stated:
        fields["max_new_tokens"] = stated["max_new_tokens"]
    words = stated.get("bad_words_ids", [])
    single = [word[0] for word in words if isinstance(word, list) and len(word) == 1] if isinstance(words, list) else []
    if single:
        fields["suppressed_ids"] = [*fields.get("suppressed_ids", ()), *single]
    unused = [key for key, value in UNUSED_KEYS.items() if stated.get(key, value) != value]
    unused += ["bad_words_ids"] if words and len(single) < len(words) else []
    if unused:
        note(f"{file}: {', '.join(unused)} cannot be followed and will not change what is generated")
    build_settings(GenerationSettings, fields, str(file))
    return fields


def pooling_notes(path: Path) -> list[str]:
    """What a directory of sentence-transformers asks for beside the mean of the hidden states, one line each."""
    if not (path / MODULES).is_file():
        return []
    notes = []
    modules = read_json(path / MODULES, LARGEST_CONFIG_BYTES)
    modules = modules if isinstance(modules, list) else []
    for module in (module for module in modules if isinstance(module, dict)):
        kind = str(module.get("type")).rpartition(".")[2]
        folder = str(module.get("path"))
        if kind == "Pooling" and re.fullmatch(r"[\w\-]+", folder) and (path / folder / CONFIG).is_file():
            values = read_object(path / folder / CONFIG, LARGEST_CONFIG_BYTES)
            ways = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
            if ways not in ([], ["pooling_mode_mean_tokens"]) or values.get("pooling_mode", "mean") != "mean":
                asked = ", ".join(ways) or shown(values.get("pooling_mode"))
                notes.append(f"{path / folder / CONFIG} asks for {shown(asked)}, but embeddings here are the mean")
        elif kind not in ("Transformer", "Normalize"):
            notes.append(f"{path / MODULES}: the module {shown(kind)} is not used; embeddings are those before it")
    return notes


def generation_values(settings: GenerationSettings, config: ModelConfig) -> dict[str, Any]:
    """The settings in the words of generation_config.json."""
    keys: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "do_sample": not settings.greedy}
    if config.kind == "encoder-decoder":
        keys["decoder_start_token_id"] = config.decoder_start_id
    if not settings.greedy:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            keys[name] = getattr(settings, name)
    if settings.repetition_penalty != 1.0:
        keys["repetition_penalty"] = settings.repetition_penalty
    for theirs, ours in SEARCH_KEYS.items():
        value = getattr(settings, ours)
        meant = settings.num_beams > 1 or ours not in ONLY_WITH_BEAMS
        if meant and value != GenerationSettings.model_fields[ours].default:
            keys[theirs] = list(value) if isinstance(value, tuple) else value
    return keys


def _both(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """generation_config.json, where there is one, and config.json."""
    files = [path / GENERATION] if (path / GENERATION).exists() else []
    return [(file, read_object(file, LARGEST_CONFIG_BYTES)) for file in (*files, path / CONFIG)]
