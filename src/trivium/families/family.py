"""What a family must tell: how its config.json and its tensors correspond to ours.

A family file is three things: `read_config`, its inverse `write_config`, and `weights`, the list of its tensors.
Whether a config belongs to a family needs no rules of its own: it does when reading what would be written for it gives
it back (`obstacles`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from trivium.errors import UserError
from trivium.models.config import Head, Kind, ModelConfig

Layout = Literal["same", "transposed", "stacked", "stacked_transposed", "stacked_by_head", "row"]

# What only matters in training, or is a matter of this library: a config.json need not be able to say it.
NOT_PUBLISHED = frozenset({"dropout", "attention_dropout", "init_std"})


class Weight(NamedTuple):
    """One published tensor and the parameters of ours it is made of."""

    published: str
    """Its full name in the file of the family's language model."""
    ours: tuple[str, ...]
    """Our parameter names: one, or several that the family stores as one tensor."""
    layout: Layout = "same"
    """How they are laid out in it:
    `same`: one parameter as it is;
    `transposed`: one matrix (out, in) stored as (in, out);
    `stacked`: several, one after the other along their first dimension;
    `stacked_transposed`: the same, then transposed;
    `stacked_by_head`: query, key and value (H N, ...) stored as (H, 3, N, ...), flattened;
    `row`: one vector (V) stored as (1, V)."""


class HeadForm(NamedTuple):
    """What a family puts on its hidden states for one kind of head."""

    architecture: str
    """The class of `transformers` that such models belong to."""
    fields: Mapping[str, Any] = {}
    """Fields of our config that this head sets, such as {"head_hidden": "tanh", "head_bias": True}."""
    aliases: tuple[str, ...] = ()
    """Other architectures whose files hold this head (and more)."""


@dataclass(frozen=True)
class Family:
    """One published family."""

    model_type: str
    """The `model_type` in its config.json, by which it is recognised."""
    kind: Kind
    """Encoder, decoder or both."""
    heads: Mapping[Head, HeadForm]
    """The heads it is published with."""
    read_config: Callable[[Mapping[str, Any], str], ModelConfig]
    """(config.json as a mapping, where it came from) -> our config; UserError for what we would compute otherwise."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Our config -> what config.json says about the shape (`architectures` and `model_type` are added by others)."""
    weights: Callable[[ModelConfig], Iterable[Weight]]
    """Our config -> all tensors of its file, each of our parameters in exactly one of them."""
    shape: Mapping[str, Any]
    """The fields of our config that make a fresh model a member, its `lm` head (or its usual one) among them."""
    base_prefix: str = ""
    """What files of the bare model lack in front of a name ("bert.")."""
    copies: Callable[[ModelConfig], Mapping[str, str]] = field(default=lambda config: {})
    """Published names that a file may hold besides, as copies of others: {copy: original}."""
    is_redundant: Callable[[str], bool] = field(default=lambda name: False)
    """Whether a published tensor holds nothing that does not follow from the config (such as a table of angles)."""
    is_optional: Callable[[str], bool] = field(default=lambda name: False)
    """Whether a published tensor belongs to another head of the family, which a model without that head leaves alone
    (such as the pooler in a file for masked language modelling)."""
    stand_ins: Callable[[ModelConfig], Mapping[str, str]] = field(default=lambda config: {})
    """Names that a file may lack, because another tensor then stands for them: {absent: stand-in}."""
    ids: Mapping[str, int | None] = field(default_factory=dict)
    """Token ids of the published vocabulary that config.json states by default, such as {"pad_token_id": 0}."""

    def architecture(self, config: ModelConfig) -> str:
        """The class of `transformers` for a config of this family."""
        return self.heads[config.head].architecture

    def obstacles(self, config: ModelConfig) -> list[str]:
        """What would have to change for a config to be one of the family ("norm must be rmsnorm"); empty: nothing."""
        if config.kind != self.kind:
            return [f"kind must be {self.kind} (is {config.kind})"]
        if config.head not in self.heads:
            return [f"head must be one of {', '.join(self.heads)} (is {config.head})"]
        try:
            written = {**self.write_config(config), "architectures": [self.architecture(config)]}
            back = self.read_config(written, self.model_type)
        except UserError as error:
            return [str(error)]
        return [
            f"{name} must be {getattr(back, name)} (is {getattr(config, name)})"
            for name in ModelConfig.model_fields
            if name not in NOT_PUBLISHED and getattr(back, name) != getattr(config, name)
        ]

    def with_head(self, config: ModelConfig, head: Head, labels: Iterable[str] = ()) -> ModelConfig:
        """The config with another head, as this family builds it; UserError when it has none of that kind."""
        if head not in self.heads:
            raise UserError(f"{self.model_type} models have no {head} head: choose {', '.join(self.heads)}")
        values = {key: value for key, value in self.write_config(config).items() if key not in LABEL_KEYS}
        values |= {"architectures": [self.heads[head].architecture], **label_values(head, tuple(labels))}
        changed = self.read_config(values, self.model_type)
        return changed.changed(**{name: getattr(config, name) for name in NOT_PUBLISHED})


LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type")


def label_values(head: Head, labels: tuple[str, ...]) -> dict[str, Any]:
    """What config.json says of a head's labels; empty for heads without."""
    if head == "scalar":
        return {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_labels": 1}
    if not labels:
        return {}
    values: dict[str, Any] = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if head == "classification":
        values["problem_type"] = "regression" if len(labels) == 1 else "single_label_classification"
    return values
