"""Reading a config.json: what the families have in common.

Every value comes from a file of unknown origin, so each is checked and, in a message, shown on one line of bounded
length. Types are checked by `ModelConfig` itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trivium.config import build_settings
from trivium.errors import UserError
from trivium.families.family import HeadForm, label_values
from trivium.models.config import Activation, Head, ModelConfig

# Characters of a file's content repeated in a message.
SHOWN = 80
LARGEST_LABEL_COUNT = 100_000

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
# Their key: (our field, what a config.json without the key means; None: it must be there, or follows from others).
Fields = Mapping[str, tuple[str, Any]]


def shown(value: object) -> str:
    """A value from a file of unknown origin, fit to be shown: one line, of bounded length, as JSON would write it."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def stated(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """What `values` say; a null says nothing."""
    value = values.get(key)
    return default if value is None else value


def read_fields(values: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """The fields of a table, under our names; those that neither `values` nor the table give are left out."""
    found = {ours: stated(values, theirs, default) for theirs, (ours, default) in fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def write_fields(config: ModelConfig, fields: Fields) -> dict[str, Any]:
    """The inverse of `read_fields`."""
    return {theirs: getattr(config, ours) for theirs, (ours, _) in fields.items()}


def read_activation(values: Mapping[str, Any], key: str, default: str, origin: str) -> Activation:
    """The activation under `key`."""
    name = stated(values, key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{origin}: {key} is {shown(name)}: known are {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def write_activation(activation: Activation) -> str:
    """The name of an activation in config.json."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def read_choice(values: Mapping[str, Any], key: str, default: Any, allowed: Mapping[Any, Any], origin: str) -> Any:
    """What `allowed` maps the value under `key` to; UserError for any other value."""
    value = stated(values, key, default)
    if isinstance(value, list | dict) or value not in allowed:
        raise UserError(f"{origin}: {key} is {shown(value)}: supported are {', '.join(map(shown, allowed))}")
    return allowed[value]


def refuse_foreign(values: Mapping[str, Any], origin: str) -> None:
    """UserError where a directory asks for its own code, or holds weights in a packed form."""
    for key in ("auto_map", "quantization_config"):
        if values.get(key):
            raise UserError(f"{origin}: {key} is set: neither code nor packed weights of a model directory are used")


def read_head(values: Mapping[str, Any], heads: Mapping[Head, HeadForm], default: Head, origin: str) -> dict[str, Any]:
    """The fields of the head that `architectures` and `id2label` name: head, labels, and what its form sets."""
    architectures = stated(values, "architectures", [heads[default].architecture])
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else architectures
    known = {form.architecture: head for head, form in reversed(list(heads.items()))}
    known |= {alias: head for head, form in heads.items() for alias in form.aliases}
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{origin}: architectures is {shown(architectures)}: supported are {', '.join(known)}")
    head = known[name]
    labels: tuple[str, ...] = ()
    if head in ("classification", "token_classification", "scalar"):
        labels = _labels(values, origin)
        if "scalar" in heads and heads["scalar"].architecture == name:
            one_number = len(labels) == 1 and values.get("problem_type") != "regression"
            head = "scalar" if one_number else "classification"
    return {"head": head, "labels": () if head == "scalar" else labels, **heads[head].fields}


def write_head(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of labels; empty for heads without."""
    return label_values(config.head, config.labels)


def build(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config from its fields; UserError that names the file."""
    return build_settings(ModelConfig, dict(values), origin)


def _labels(values: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    names = values.get("id2label")
    if names is None:
        count = stated(values, "num_labels", 2)
        if type(count) is not int or not 1 <= count <= LARGEST_LABEL_COUNT:
            raise UserError(f"{origin}: num_labels is {shown(count)}: give a number from 1 to {LARGEST_LABEL_COUNT}")
        return tuple(f"LABEL_{number}" for number in range(count))
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))) or not names:
        raise UserError(f"{origin}: id2label is {shown(names)}: it must name the classes 0, 1, 2, ...")
    texts = {str(number): label for number, label in names.items()}
    return tuple(str(texts[str(number)]) for number in range(len(names)))
