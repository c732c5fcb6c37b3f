"""Which model can learn what: a choice with a reason, and settings that refuse what they do not know."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from data.samples import byte_marks
from data.test_tasks import objective
from trivium.data.marks import Marks, refuse_missing_marks
from trivium.data.objectives_settings import (
    OBJECTIVES,
    OBJECTIVES_OF,
    ObjectiveName,
    ObjectiveSettings,
    refuse_objective,
)
from trivium.errors import UserError
from trivium.models.config import Kind

KINDS = get_args(Kind)


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(OBJECTIVES, KINDS)))
def test_every_combination_is_allowed_or_refused_with_a_reason(name: ObjectiveName, kind: Kind) -> None:
    if name in OBJECTIVES_OF[kind]:
        refuse_objective(name, kind)
        return
    with pytest.raises(UserError) as caught:
        refuse_objective(name, kind)
    message = str(caught.value)
    assert message.startswith(f"objective.name={name} is not for model.kind={kind}: ")
    reason = message.partition(": ")[2].partition("; choose")[0]
    assert len(reason.split()) > 6, "a reason, not a rule"
    homes = message.rpartition("model.kind=")[2].split(" or ")
    assert all(name in OBJECTIVES_OF[home] for home in homes)  # type: ignore[index]


def test_the_reason_for_masks_and_decoders() -> None:
    with pytest.raises(UserError, match="a decoder sees the past only"):
        refuse_objective("masked", "decoder")


def test_every_objective_is_allowed_somewhere() -> None:
    assert (
        {name for names in OBJECTIVES_OF.values() for name in names} == set(OBJECTIVES) == set(get_args(ObjectiveName))
    )


def test_a_name_alone_is_the_objective_with_its_defaults() -> None:
    adapter: TypeAdapter[ObjectiveSettings] = TypeAdapter(ObjectiveSettings)
    for name in OBJECTIVES:
        assert adapter.validate_python(name) == adapter.validate_python({"name": name})
    with pytest.raises(ValidationError, match="did you mean masked"):
        adapter.validate_python("maskd")
    with pytest.raises(ValidationError, match="mean_span"):
        adapter.validate_python({"name": "masked", "mean_span": 3})


def test_a_tokenizer_without_the_tokens_that_are_needed_is_refused() -> None:
    bare = Marks(before=(), after=(), ordinary=byte_marks().ordinary)
    for name, kind, missing in (
        ("masked", "encoder", "a mask token"),
        ("denoise", "encoder-decoder", "a mask token"),
        ("spans", "encoder-decoder", "sentinels"),
        ("mixture", "encoder-decoder", "sentinels"),
        ("pairs", "encoder-decoder", "a token at the end"),
        ("prefix", "encoder-decoder", "a token at the end"),
    ):
        with pytest.raises(UserError, match=f"objective.name={name} needs {missing}"):
            refuse_missing_marks(objective({"name": name}), kind, bare)  # type: ignore[arg-type]
        refuse_missing_marks(objective({"name": name}), kind, byte_marks())  # type: ignore[arg-type]
    refuse_missing_marks(objective({"name": "prefix"}), "decoder", bare)
