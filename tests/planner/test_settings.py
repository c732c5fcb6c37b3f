"""Settings of a plan: sizes and counts as people write them, and combinations that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from trivium.config import build_settings
from trivium.errors import UserError
from trivium.planner.settings import PlanSettings


def read(*overrides: str) -> PlanSettings:
    return build_settings(PlanSettings, {}, "plan", overrides)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("80GiB", 80 << 30), ("1.5 gb", 1_500_000_000), ("512", 512), ("640KiB", 640 << 10)],
)
def test_sizes(text: str, size: int) -> None:
    assert read(f"memory={text}").memory == size


@pytest.mark.parametrize(("text", "count"), [("3e8", 300_000_000), ("15M", 15_000_000), ("2B", 2 * 10**9), ("7", 7)])
def test_counts(text: str, count: int) -> None:
    assert read(f"tokens={text}").tokens == count


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["memory=much"], "must be a number of bytes, or a size such as 24GB or 80GiB"),
        (["memory=-1"], "greater than or equal to 0"),
        (["tokens=1.5"], "tokens"),
        (["tokens=many"], "tokens"),
        (["stage=finetunes"], "did you mean finetune?"),
        (["batch=3"], "unknown key"),
        (["sequence_lenght=3"], "did you mean sequence_length?"),
        (["peft=lora", "stage=pretrain"], "peft=lora is for finetune, reward, dpo, ppo, grpo, not pretrain"),
        (["base=nf4"], "cannot be trained itself: add peft=lora"),
        (["new_tokens=10", "sequence_length=10"], "leave no room for a prompt"),
        (["targets=[]"], "targets is empty"),
        (["targets=[attention]"], "targets"),
        (["rank=0"], "rank"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_in_a_line(overrides: list[str], answer: str) -> None:
    with pytest.raises(UserError) as caught:
        read(*overrides)
    assert answer in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_follows_from_the_settings() -> None:
    settings = read("data_ways=2", "fsdp_ways=3", "tensor_ways=4", "peft=lora", "base=int4")
    assert settings.devices == 24 and settings.trains and settings.is_packed
    serving: dict[str, Any] = {"stage": "serve", "base": "bf16"}
    assert not PlanSettings(**serving).trains and not PlanSettings(**serving).is_packed
