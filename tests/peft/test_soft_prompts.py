"""Learned positions against `transformers` with vectors before the text, or a past; packed, cached, switched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from families.parity import opened, random_ids, relative, shaken
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.models.cache import Cache
from trivium.peft.apply import (
    active_adapter,
    adapter_of,
    adapter_state,
    add_adapter,
    load_adapter_state,
    remove_adapter,
    use_adapter,
    without_adapter,
)
from trivium.peft.settings import LoraSettings, PrefixTuningSettings, PromptSettings, PTuningSettings
from trivium.planner.peft_counts import num_trainable_parameters
from trivium.planner.settings import PlanSettings

P = 5
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=90)
    )


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64)
    )


def bloom() -> Any:
    return transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=90))


def mistral() -> Any:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, sliding_window=9)
    )


def gemma2() -> Any:
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES, num_key_value_heads=2, intermediate_size=48, head_dim=8, sliding_window=9)
    )


def bert(kind: Any = transformers.BertForMaskedLM) -> Any:
    return kind(transformers.BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=48))


def t5() -> Any:
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=90)
    return transformers.T5ForConditionalGeneration(config)


DECODERS = {make.__name__: make for make in (gpt2, llama, bloom, mistral)}


@pytest.fixture
def open_pair(tmp_path: Path) -> Callable[[Callable[[], Any]], tuple[Any, Model]]:
    """A random model of `transformers` and ours with its weights, both in evaluation mode."""

    def build(make: Callable[[], Any]) -> tuple[Any, Model]:
        torch.manual_seed(0)
        reference = shaken(make())
        return reference, opened(reference, tmp_path / "model")[0]

    return build


def move(model: Model, name: str = "default", seed: int = 3) -> dict[str, Tensor]:
    """Give an adapter other numbers; returns them."""
    generator = torch.Generator().manual_seed(seed)
    state = adapter_state(model, name)
    tensors = {key: torch.randn(value.shape, generator=generator) * 0.5 for key, value in state.items()}
    load_adapter_state(model, name, tensors)
    return tensors


def prepended(reference: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """(B, P + T, D)."""
    embedded = reference.get_input_embeddings()(ids)
    return torch.cat((prompt.expand(len(ids), -1, -1), embedded), 1)


def past_of(reference: Any, tensors: dict[str, Tensor], rows: int) -> Any:
    past = transformers.DynamicCache(config=reference.config)
    pairs = zip(tensors["stack.prefix_keys"], tensors["stack.prefix_values"], strict=True)
    for layer, (keys, values) in enumerate(pairs):
        shaped = (x.transpose(0, 1)[None].expand(rows, -1, -1, -1) for x in (keys, values))
        past.update(*shaped, layer)
    return past


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
def test_a_prompt_is_the_vectors_before_the_text_and_so_are_its_gradients(make: Any, open_pair: Any) -> None:
    reference, model = open_pair(make)
    ids = random_ids(model.config, 3, 17)
    adapter = add_adapter(model, PromptSettings(virtual_tokens=P))
    prompt = move(model)["prompt"].requires_grad_()
    expected = reference(inputs_embeds=prepended(reference, prompt, ids)).logits[:, P:]
    found = model(ids)
    assert relative(found, expected) <= 1e-5
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected.log_softmax(-1) * direction).sum().backward()
    (found.log_softmax(-1) * direction).sum().backward()
    ((_, parameter),) = adapter.parameters(model).items()
    assert prompt.grad is not None and parameter.grad is not None
    assert relative(parameter.grad, prompt.grad) <= 1e-4
    assert all(each.grad is None for name, each in model.named_parameters() if each is not parameter)
    with torch.no_grad():  # broken control: the vectors in another order are seen
        load_adapter_state(model, "default", {"prompt": prompt.detach().flip(0)})
        assert relative(model(ids), expected) > 1e-3


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
@torch.no_grad()
def test_a_prefix_is_a_past_of_these_keys_and_values(make: Any, open_pair: Any) -> None:
    reference, model = open_pair(make)
    ids = random_ids(model.config, 3, 17)
    add_adapter(model, PrefixTuningSettings(virtual_tokens=P))
    tensors = move(model)
    past = past_of(reference, tensors, len(ids))
    seen = torch.ones(len(ids), P + ids.shape[1], dtype=torch.long)
    expected = reference(ids, past_key_values=past, attention_mask=seen, use_cache=True).logits
    assert relative(model(ids), expected) <= 1e-5
    with without_adapter(model):
        assert relative(model(ids), expected) > 1e-3


@pytest.mark.parametrize("settings", [PromptSettings(virtual_tokens=P), PrefixTuningSettings(virtual_tokens=P)])
@pytest.mark.parametrize("make", [gpt2, llama, bloom, mistral, gemma2])
@torch.no_grad()
def test_packed_is_alone_and_cached_is_uncached(make: Any, settings: Any, open_pair: Any) -> None:
    _, model = open_pair(make)
    add_adapter(model, settings)
    move(model)
    ids = random_ids(model.config, 2, 12)
    alone = [model(ids[:1]), model(ids[1:, :9])]
    row = torch.cat((ids[0], ids[1, :9], ids[0, :2]))[None]
    segments = torch.tensor([[1] * 12 + [2] * 9 + [0] * 2])
    packed = model(row, segments=segments)
    assert relative(packed[:, :12], alone[0]) <= 2e-6
    assert relative(packed[:, 12:21], alone[1]) <= 2e-6
    cache: Cache | None = Cache.empty(model.config, 2, 3, "cpu", torch.float32)
    whole, pieces = model(ids), []
    for piece in ids.split((4, 1, 1, 6), dim=1):
        hidden, cache = model.hidden(piece, cache=cache)
        pieces.append(model.logits(hidden))
    assert cache is not None and cache.length == 12  # the learned positions are not in it
    assert relative(torch.cat(pieces, 1), whole) <= 2e-6


@torch.no_grad()
def test_bf16_is_near_fp32(open_pair: Any) -> None:
    _, model = open_pair(llama)
    ids = random_ids(model.config, 2, 12)
    for number, settings in enumerate((PromptSettings(virtual_tokens=P), PrefixTuningSettings(virtual_tokens=P))):
        add_adapter(model, settings, name=f"a{number}")
        exact = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            assert 0 < relative(model(ids).float(), exact) < 0.1


@torch.no_grad()
def test_a_prompt_of_an_encoder_stands_before_each_text(open_pair: Any) -> None:
    reference, model = open_pair(bert)
    ids = random_ids(model.config, 3, 17)
    add_adapter(model, PromptSettings(virtual_tokens=P))
    prompt = move(model)["prompt"]
    expected = reference(inputs_embeds=prepended(reference, prompt, ids)).logits[:, P:]
    assert relative(model(ids), expected) <= 1e-5
    assert model.hidden(ids).shape[:2] == ids.shape
    padded = torch.cat((ids, torch.zeros(3, 4, dtype=ids.dtype)), 1)
    segments = torch.tensor([[1] * 17 + [0] * 4] * 3)
    assert relative(model(padded, segments=segments)[:, :17], expected) <= 1e-5
    with pytest.raises(UserError, match="packing=false"):
        model(padded, segments=torch.tensor([[1] * 9 + [2] * 12] * 3))
    with pytest.raises(UserError, match="learned 48"):
        model(random_ids(model.config, 1, 44))


@torch.no_grad()
def test_a_prompted_encoder_pools_the_first_of_all_positions(open_pair: Any) -> None:
    reference, model = open_pair(lambda: bert(transformers.BertForSequenceClassification))
    ids = random_ids(model.config, 3, 17)
    add_adapter(model, PromptSettings(virtual_tokens=P))
    prompt = move(model)["prompt"]
    expected = reference(inputs_embeds=prepended(reference, prompt, ids)).logits
    assert relative(model(ids), expected) <= 1e-5
    assert relative(model(ids, segments=torch.ones_like(ids)), expected) <= 1e-5


@torch.no_grad()
def test_a_prompt_of_an_encoder_decoder_stands_before_the_source(open_pair: Any) -> None:
    reference, model = open_pair(t5)
    source, ids = random_ids(model.config, 3, 13, seed=1), random_ids(model.config, 3, 8)
    add_adapter(model, PromptSettings(virtual_tokens=P))
    prompt = move(model)["prompt"]
    expected = reference(inputs_embeds=prepended(reference, prompt, source), decoder_input_ids=ids).logits
    assert relative(model(source, ids), expected) <= 1e-5
    padded = torch.cat((source, source[:, :3]), 1)
    segments = torch.tensor([[1] * 13 + [0] * 3] * 3)
    assert relative(model(padded, ids, source_segments=segments), expected) <= 1e-5


@torch.no_grad()
def test_a_prefix_of_an_encoder_decoder_is_in_each_attention_of_its_stacks(open_pair: Any) -> None:
    _, model = open_pair(t5)
    source, ids = random_ids(model.config, 3, 13, seed=1), random_ids(model.config, 3, 8)
    base = model(source, ids)
    for stacks, count in (("encoder", 2), ("decoder", 2), ("all", 6)):
        add_adapter(model, PrefixTuningSettings(virtual_tokens=P, stacks=stacks), name=stacks)
        assert len(adapter_state(model, stacks)) == count
        tensors = move(model, stacks)
        whole = model(source, ids)
        padded = torch.cat((source, source[:, :3]), 1)
        segments = torch.tensor([[1] * 13 + [0] * 3] * 3)
        assert relative(model(padded, ids, source_segments=segments), whole) <= 2e-6
        assert relative(whole, base) > 1e-3
        for key in tensors:  # each of them matters
            load_adapter_state(model, stacks, tensors | {key: tensors[key] + 1})
            assert relative(model(source, ids), whole) > 1e-4, key
    use_adapter(model, None)
    assert torch.equal(model(source, ids), base)


@torch.no_grad()
def test_switching_and_removing(open_pair: Any) -> None:
    _, model = open_pair(llama)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = random_ids(model.config, 2, 12)
    base, results = model(ids), {}
    methods = {
        "prompt": PromptSettings(virtual_tokens=P),
        "other": PromptSettings(virtual_tokens=P + 2),
        "prefix": PrefixTuningSettings(virtual_tokens=P),
        "made": PTuningSettings(virtual_tokens=P),
        "lora": LoraSettings(),
    }
    for name, settings in methods.items():
        add_adapter(model, settings, name=name)
        if name == "lora":
            move(model, name)
        results[name] = model(ids)
    for name in (*methods, *reversed(methods)):
        use_adapter(model, name)
        assert active_adapter(model) == name and torch.equal(model(ids), results[name])
        use_adapter(model, None)
        assert torch.equal(model(ids), base)
    assert len({float(result.sum()) for result in (base, *results.values())}) == 6
    for name in methods:
        remove_adapter(model, name)
    assert model.stack.prefix is None and torch.equal(model(ids), base)
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("make", [gpt2, llama, bert, t5])
def test_as_many_numbers_as_planned(make: Any, open_pair: Any) -> None:
    _, model = open_pair(make)
    for method, settings in {
        "prompt": PromptSettings(virtual_tokens=P),
        "prefix": PrefixTuningSettings(virtual_tokens=P),
        "p_tuning": PTuningSettings(virtual_tokens=P),
    }.items():
        adapter = add_adapter(model, settings, name=method)
        trained = sum(parameter.numel() for parameter in adapter.parameters(model).values())
        planned = num_trainable_parameters(model.config, PlanSettings(stage="finetune", peft=method, virtual_tokens=P))
        # The planner leaves the network's three biases out.
        extra = 3 * model.config.width if method == "p_tuning" and trained != planned else 0
        assert trained == planned + extra
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize(
    "settings", [PTuningSettings(virtual_tokens=P), PrefixTuningSettings(virtual_tokens=P, projection_width=7)]
)
def test_a_network_is_trained_and_only_what_it_makes_is_saved(settings: Any, open_pair: Any) -> None:
    _, model = open_pair(llama)
    ids = random_ids(model.config, 2, 12)
    adapter = add_adapter(model, settings, seed=4)
    model(ids).logsumexp(-1).sum().backward()
    gradients = {name: parameter.grad for name, parameter in adapter.parameters(model).items()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values()), gradients
    tensors, expected = adapter_state(model, "default"), model(ids).detach()
    assert sum(x.numel() for x in tensors.values()) < sum(p.numel() for p in adapter.parameters(model).values())
    add_adapter(model, settings, name="again", seed=4)
    assert torch.equal(model(ids), expected)  # the same seed
    add_adapter(model, settings, name="third", seed=5)
    assert relative(model(ids), expected) > 1e-4
    load_adapter_state(model, "third", tensors)
    assert torch.equal(model(ids), expected)
    assert adapter_of(model, "third").parameters(model).keys() != gradients.keys()  # the network is gone


def test_checkpointed_gradients_are_equal(open_pair: Any) -> None:
    from trivium.models.build import set_gradient_checkpointing

    _, model = open_pair(llama)
    ids, found = random_ids(model.config, 2, 12), []
    adapter = add_adapter(model, PromptSettings(virtual_tokens=P))
    for on in (False, True):
        set_gradient_checkpointing(model, on)
        model.zero_grad()
        model(ids).logsumexp(-1).sum().backward()
        (parameter,) = adapter.parameters(model).values()
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
    assert torch.equal(*found)


class Letters:
    """A tokenizer of letters, for prompts that begin as a text."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


@torch.no_grad()
def test_a_prompt_that_begins_as_a_text_does_what_the_text_does(open_pair: Any) -> None:
    from trivium.peft.soft_prompts import activate, install, state

    _, model = open_pair(llama)
    ids = random_ids(model.config, 2, 12)
    install(model, PromptSettings(virtual_tokens=P, start="text", text="abc"), "text", 0, Letters())
    assert torch.equal(state(model, "text")["prompt"], model.embedding(torch.tensor([0, 1, 2, 0, 1])))
    activate(model, "text")
    text = torch.tensor([[0, 1, 2, 0, 1]]).expand(2, -1)
    found = model(ids)
    activate(model, None)
    assert relative(found, model(torch.cat((text, ids), 1))[:, P:]) <= 2e-6


def test_what_cannot_be_is_refused_and_nothing_is_changed(open_pair: Any) -> None:
    _, model = open_pair(gpt2)
    for settings, said in (
        (PromptSettings(virtual_tokens=48), "virtual_tokens=48"),
        (PromptSettings(start="text"), "peft.text"),
        (PromptSettings(start="text", text="a"), "tokenizer"),
        (PrefixTuningSettings(stacks="decoder"), "one stack"),
    ):
        with pytest.raises(UserError, match=said):
            add_adapter(model, settings)
        assert model.stack.prefix is None and active_adapter(model) is None
    add_adapter(model, PrefixTuningSettings(virtual_tokens=P))
    state = adapter_state(model, "default")
    key = "stack.prefix_keys"
    for wrong, said in (
        ({}, "missing|no tensor"),
        (state | {"more": state[key]}, "more"),
        (state | {key: state[key][1:]}, key),
    ):
        with pytest.raises(UserError, match=said):
            load_adapter_state(model, "default", wrong)


def test_generated_text_is_that_of_the_text_put_before() -> None:
    """Through the whole generator (slots, batches), which must not take the native path either."""
    import trivium
    from trivium.generation.fast_stepper import FastStepper
    from trivium.generation.generate import generate
    from trivium.generation.settings import GenerationSettings

    bundle = trivium.load("smollm2-135m-instruct", quantize="int8")
    before, settings = (
        "The capital of",
        GenerationSettings(max_new_tokens=6, temperature=0.0, add_special_tokens=False)
        if "add_special_tokens" in GenerationSettings.model_fields
        else GenerationSettings(max_new_tokens=6, temperature=0.0),
    )
    ids = bundle.tokenizer.encode(before)
    rest = [bundle.tokenizer.encode(text) for text in (" France is", " Germany, as we all know, is")]
    expected = [
        each.text for each in generate(bundle.model, bundle.tokenizer, [[*ids, *each] for each in rest], settings)
    ]
    from trivium.peft.soft_prompts import activate, install

    install(bundle.model, PromptSettings(virtual_tokens=len(ids), start="text", text=before), "a", 0, bundle.tokenizer)
    activate(bundle.model, "a")
    assert FastStepper.of(bundle.model) is None
    assert [each.text for each in generate(bundle.model, bundle.tokenizer, rest, settings)] == expected
    activate(bundle.model, None)
    assert [each.text for each in generate(bundle.model, bundle.tokenizer, rest, settings)] != expected
