"""Random encoders of `transformers` for the tests of four families, and the checks that all four pass.

A sample is a class of `transformers` and what its config is made of. The checks take the class of the config, so that
what is read and written is judged by the other side's own reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from trivium.errors import UserError
from trivium.families.family import Family, Weight
from trivium.models.build import Model, build_model
from trivium.models.config import Head, ModelConfig

CLASSES = {"id2label": {0: "nothing", 1: "person", 2: "place"}, "label2id": {"nothing": 0, "person": 1, "place": 2}}
NUMBER = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
ODD = (
    None,
    True,
    0,
    -1,
    3,
    10**40,
    -0.5,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "gelu",
    "x\n" * 999,
    [],
    [[1]],
    {},
    {"a": {}},
)
OPTIONS: dict[Head, dict[str, Any]] = {"classification": CLASSES, "token_classification": CLASSES, "scalar": NUMBER}


@dataclass(frozen=True)
class Sample:
    """One model to be."""

    family: Family
    config_class: type[Any]
    head: Head
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.head}-{self.options.get('hidden_size', self.options.get('dim'))}"

    def config(self) -> Any:
        """The config of `transformers`."""
        config = self.config_class(**{**OPTIONS.get(self.head, {}), **self.options})
        config.architectures = [self.family.heads[self.head].architecture]
        return config

    def reference(self, seed: int = 0) -> Any:
        """The model of `transformers`, with random weights."""
        torch.manual_seed(seed)
        return getattr(transformers, self.family.heads[self.head].architecture)(self.config()).eval()

    def ours(self) -> ModelConfig:
        """Our config for theirs."""
        return self.family.read_config(self.config().to_dict(), "config.json")


def samples(family: Family, config_class: type[Any], sizes: Iterable[dict[str, Any]]) -> list[Sample]:
    """Each size with each head."""
    sizes = tuple(sizes)
    return [Sample(family, config_class, head, size) for size in sizes for head in family.heads]


def some_of_each(all_samples: list[Sample]) -> list[Sample]:
    """Every head and every size at least once, each size several times."""
    heads = len(all_samples[0].family.heads)
    return [sample for place, sample in enumerate(all_samples) if (place % heads + place // heads) % 3 == 0]


def check_config(sample: Sample) -> None:
    """What is read is written so that both sides read it again, and says what `transformers` has."""
    config = sample.ours()
    assert config.head == sample.head and config.kind == "encoder"
    assert sample.family.obstacles(config) == []
    written = sample.family.write_config(config)
    again = sample.config_class(**written)
    again.architectures = [sample.family.architecture(config)]
    back = sample.family.read_config(again.to_dict(), "config.json")
    assert back == config
    theirs, ours = sample.config().to_dict(), again.to_dict()
    # Ids of special tokens are the tokenizer's business, unless the family's shape depends on one.
    keys = [key for key in sample.options if not key.endswith("_token_id") or key in written]
    different = {key: (theirs[key], ours[key]) for key in keys if theirs[key] != ours[key]}
    assert not different, different


def check_names(sample: Sample) -> None:
    """Each of our parameters is in exactly one tensor, and these are the tensors `transformers` saves."""
    config = sample.ours()
    theirs = sample.reference()
    with torch.device("meta"):
        ours = build_model(config)
    weights = list(sample.family.weights(config))
    placed = [name for weight in weights for name in weight.ours]
    assert sorted(placed) == sorted(ours.state_dict())
    prefix = "" if sample.head != "none" else sample.family.base_prefix
    expected = {prefix + name for name in theirs.state_dict()} - set(sample.family.copies(config))
    published = {weight.published for weight in weights}
    assert published == {name for name in expected if name in published or not sample.family.is_redundant(name)}


def check_heads(sample: Sample) -> None:
    """Every head of the family can be put on, is of the family, and has its parameters placed."""
    for head in sample.family.heads:
        labels = ("a", "b") if head in ("classification", "token_classification") else ()
        config = sample.family.with_head(sample.ours(), head, labels)
        assert sample.family.obstacles(config) == [], (head, sample.family.obstacles(config))
        with torch.device("meta"):
            names = build_model(config).state_dict()
        assert sorted(name for weight in sample.family.weights(config) for name in weight.ours) == sorted(names)


def check_hostile(sample: Sample) -> None:
    """Whatever stands in place of a value, reading ends in a config or in one line of bounded length."""
    values = {**sample.config().to_dict(), **sample.family.write_config(sample.ours())}
    for key in values:
        for odd in ODD:
            try:
                sample.family.read_config({**values, key: odd}, "config.json")
            except UserError as error:
                message = str(error)
                assert "\n" not in message and len(message) < 600, (key, odd, message[:700])


def check_fresh(family: Family) -> None:
    """A model made from `shape` alone is one of the family."""
    config = ModelConfig(vocab_size=50, width=24, layers=3, heads=4, max_positions=32, **family.shape)
    assert family.obstacles(config) == []


def exchanged(family: Family, first: str, second: str) -> Callable[[ModelConfig], Iterator[Weight]]:
    """`weights` with two of our modules in each other's place: a seeded mistake."""

    def swapped(name: str) -> str:
        return name.replace(first, "*").replace(second, first).replace("*", second)

    def weights(config: ModelConfig) -> Iterator[Weight]:
        for weight in family.weights(config):
            yield weight._replace(ours=tuple(swapped(name) for name in weight.ours))

    return weights


def with_changes(model: Model, **changes: Any) -> Model:
    """The same weights under another config: a seeded mistake."""
    changed = build_model(model.config.changed(**changes)).eval()
    changed.load_state_dict(model.state_dict(), strict=False)
    return changed


def padded(ids_BT: Tensor, lengths: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Rows cut to `lengths` and padded on the right with id 1, and which positions are real (int64)."""
    real = torch.arange(ids_BT.shape[1]) < torch.tensor(list(lengths))[:, None]
    return torch.where(real, ids_BT, 1), real.long()
