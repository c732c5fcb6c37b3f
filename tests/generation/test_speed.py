"""Measured speed is that of the model, and the limits beside it count what is really read and multiplied."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.samples import BASE, VARIANTS
from trivium.errors import UserError
from trivium.generation import speed
from trivium.generation.reading import Reading
from trivium.generation.settings import GenerationSettings
from trivium.generation.slots import Slots
from trivium.generation.speed import Speed, Spread, kv_bytes, limits, measure_speed, prefill_flops, read_weight_bytes
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.quantization.quantize import quantize_model
from trivium.quantization.schemes import packed_bytes, scheme_for
from trivium.tokenizer.bpe import Tokenizer

SEQ2SEQ = {
    "t5": BASE.changed(kind="encoder-decoder", positions="relative", decoder_layers=3, kv_heads=2),
    "bart": BASE.changed(kind="encoder-decoder", norm="layernorm", positions="learned", bias="all", head_bias=True),
    "untied": BASE.changed(kind="encoder-decoder", positions="relative", tied_embeddings=False),
}
WRITING = {**VARIANTS, **SEQ2SEQ}


class Touched(TorchDispatchMode):
    """Records which of a model's weights any operation reads; looking a row up in a table does not count."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.sizes = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.embedding.default:
            tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
            self.read.update(tensor.data_ptr() for tensor in tensors if tensor.data_ptr() in self.sizes)
        return func(*args, **(kwargs or {}))

    @property
    def bytes(self) -> int:
        return sum(self.sizes[pointer] for pointer in self.read)


def touched_bytes(config: ModelConfig) -> tuple[int, Model]:
    """The weights that one step of a model reads, as its operations say."""
    model = build_model(config).eval()
    initialise(model, config, seed=0)
    assert not isinstance(model, Encoder)
    reading = Reading(model, [[5, 6, 7]], 8)
    with Touched(model) as touched:
        reading.advance([3])
    return touched.bytes, model


@pytest.mark.parametrize("name", WRITING)
def test_the_weights_of_a_step_are_those_its_operations_read(name: str) -> None:
    found, model = touched_bytes(WRITING[name])
    assert read_weight_bytes(model) == found
    # Broken control: all weights are more wherever a table is only looked up, or a source was read before.
    looks_up = model.config.positions == "learned" or not model.config.tied_embeddings
    relative = model.config.positions == "relative"
    assert (speed.stored_bytes(model) > found) == (looks_up or relative or model.config.kind != "decoder")


def test_packed_weights_count_in_their_packed_size() -> None:
    config = BASE.changed(width=64, mlp_width=128)
    for name in ("int8", "int4", "nf4"):
        model = build_model(config)
        initialise(model, config, seed=0)
        scheme = scheme_for(name)
        quantize_model(model, scheme)
        shapes = [("embedding", config.vocab_size, 64)]
        for block in range(config.layers):
            shapes += [
                (f"stack.blocks.{block}.attention.{part}", 64, 64) for part in ("query", "key", "value", "output")
            ]
            shapes += [(f"stack.blocks.{block}.mlp.{part}", 128, 64) for part in ("gate", "up")]
            shapes += [(f"stack.blocks.{block}.mlp.down", 64, 128)]
        norms = 4 * 64 * (2 * config.layers + 1)
        assert read_weight_bytes(model) == norms + sum(packed_bytes(scheme, o, i, name) for name, o, i in shapes)


@pytest.mark.parametrize("kv", ["model", "int8"])
def test_keys_and_values_count_as_the_slots_hold_them(kv: Any) -> None:
    config = BASE.changed(kv_heads=2)
    for dtype in (torch.float32, torch.bfloat16):
        slots = Slots(config, 1, 64, dtype=dtype, kv=kv)
        assert kv_bytes(config, 64, dtype, quantized=kv == "int8") == slots.bytes
    windowed = VARIANTS["windows, sandwich, caps, qk-norm"]  # 3 layers, two of them see 5 positions
    assert kv_bytes(windowed, 100, torch.float32) == 2 * 2 * 8 * 4 * (100 + 2 * 5)
    t5 = SEQ2SEQ["t5"]  # 3 layers of the decoder, each reading the target so far and the source
    assert kv_bytes(t5, 10, torch.float32, source=50) == 2 * 2 * 8 * 4 * 3 * (10 + 50)


@pytest.mark.parametrize("config", [*VARIANTS.values(), *SEQ2SEQ.values(), BASE.changed(kind="encoder")], ids=str)
def test_prefill_flops_are_those_torch_counts(config: ModelConfig) -> None:
    T = 24
    with torch.device("meta"):  # where attention is made of plain matrix products, which the counter knows
        model = build_model(config)
        ids = torch.zeros(1, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(model, Decoder):
            model.logits(model.hidden(ids)[0][:, -1])
        elif isinstance(model, Encoder):
            model(ids)
        else:
            model(ids, ids[:, :1])
    # torch counts all of a causal model's scores and weighted sums, the limit only those it needs.
    query_width = config.heads * config.head_width
    unneeded = 4 * config.layers * query_width * T * (T - (T + 1) // 2) if config.kind == "decoder" else 0
    assert prefill_flops(config, T) == counter.get_total_flops() - unneeded


def slowed(model: Decoder, prompt_seconds: float, step_seconds: float) -> Decoder:
    """The model made to wait in front of its table of tokens, which every way to read goes through."""

    def wait(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        time.sleep(prompt_seconds if arguments[0].numel() > 8 else step_seconds)

    model.embedding.register_forward_pre_hook(wait)
    return model


def measured(model: Decoder, tokenizer: Tokenizer, rows: int = 1) -> Speed:
    return measure_speed(model, tokenizer, rows=rows, prompt_tokens=20, new_tokens=5, repeats=3)


def test_a_model_that_waits_is_slower_by_as_much(model: Decoder, tokenizer: Tokenizer) -> None:
    found = measured(slowed(model, prompt_seconds=0.2, step_seconds=0.03), tokenizer)
    assert found.first_token_seconds.median >= 0.2
    assert found.prefill_tokens_per_second.median <= 20 / 0.2
    assert found.decode_tokens_per_second is not None
    # Broken control: with the prompt's time in it the pace would be below 4 / (0.2 + 4 * 0.03).
    assert 4 / 0.32 < found.decode_tokens_per_second.median <= 1 / 0.03


def test_rows_are_written_together(model: Decoder, tokenizer: Tokenizer) -> None:
    waiting = slowed(model, prompt_seconds=0.01, step_seconds=0.03)
    one, four = (measured(waiting, tokenizer, rows).decode_tokens_per_second for rows in (1, 4))
    assert one is not None and four is not None and four.median > 2 * one.median


def test_limits_are_rates_over_what_is_read(model: Decoder) -> None:
    pace = Spread.of([1.0])
    found = Speed(4, 100, 20, pace, pace, pace)
    most = limits(model, found, flops_per_second=1e9, bytes_per_second=1e9)
    step = read_weight_bytes(model) + 4 * kv_bytes(model.config, 110, torch.float32)
    assert most.decode_bytes == step and most.decode_tokens_per_second == 4 * 1e9 / step
    assert most.prefill_tokens_per_second == 100 * 1e9 / prefill_flops(model.config, 100)
    small = limits(
        model, found, flops_per_second=None, bytes_per_second=1e9, settings=GenerationSettings(kv_cache="int8")
    )
    assert small.decode_bytes < most.decode_bytes and small.prefill_tokens_per_second is None


def test_code_paths(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.code_paths(model).keys() == {"step", "kernels"}
    monkeypatch.setenv("TRIVIUM_KERNELS", "off")
    assert speed.code_paths(model) == {"step": "torch", "kernels": "none"}


def test_what_cannot_be_measured_is_refused(model: Decoder, tokenizer: Tokenizer) -> None:
    def refused(prompt_tokens: int, new_tokens: int) -> Callable[[], object]:
        return lambda: measure_speed(model, tokenizer, rows=1, prompt_tokens=prompt_tokens, new_tokens=new_tokens)

    with pytest.raises(UserError, match="300 prompt tokens and 30 new ones are more than the 320 positions"):
        refused(300, 30)()
    with pytest.raises(UserError, match="at least 2, not 1"):
        refused(30, 1)()
