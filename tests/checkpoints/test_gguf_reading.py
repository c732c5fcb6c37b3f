"""Real weights from a GGUF file are the model that `transformers` makes of the same file; damaged files are refused."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch.nn import functional

from checkpoints.gguf_models import config_of, model_of, tokenizer
from checkpoints.gguf_samples import mutated
from checkpoints.gguf_transformers import read_by_transformers
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.gguf_file import read_header
from trivium.checkpoints.gguf_reading import load_gguf, plan_reading, read_model
from trivium.checkpoints.gguf_writing import save_gguf
from trivium.checkpoints.resolve import resolve_model
from trivium.checkpoints.verification_prompts import PROMPTS
from trivium.errors import UserError

NAME = "smollm2-135m-instruct"
# fp32 sums in another order, relative to the largest logit.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return resolve_model(NAME)
    except UserError as error:
        pytest.skip(f"needs real weights: {error}")


@pytest.fixture(scope="module")
def ours(path: Path) -> Bundle:
    return load(NAME)


@pytest.fixture(scope="module")
def theirs(path: Path) -> Iterator[Any]:
    pytest.importorskip("transformers")
    yield read_by_transformers(path)


def their_tokens(theirs: Any, prompt: list[int], new_tokens: int, eos_ids: tuple[int, ...]) -> list[int]:
    """What `transformers` goes on with, greedily."""
    with torch.inference_mode():
        ids = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=list(eos_ids),
            pad_token_id=eos_ids[0],
        )
    return ids[0, len(prompt) :].tolist()


def check_logits(model: Any, theirs: Any, ids: list[int]) -> None:
    """Equal up to the order of sums."""
    with torch.inference_mode():
        one, two = model(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    assert float((one - two).abs().max() / two.abs().max()) < CLOSE


def test_what_the_file_says(ours: Bundle, path: Path) -> None:
    fields = read_header(path).fields
    assert ours.family == "llama" and ours.config.norm_eps == 1e-5 and ours.config.rope_theta == 100_000.0
    assert (ours.config.layers, ours.config.width, ours.config.heads, ours.config.kv_heads) == (30, 576, 9, 3)
    assert ours.eos_ids == (fields["tokenizer.ggml.eos_token_id"],)
    assert ours.tokenizer.eos_token == "<|im_end|>"
    assert ours.tokenizer.chat_template == fields["tokenizer.chat_template"]


def test_weights_are_bit_for_bit_those_of_transformers(ours: Bundle, theirs: Any) -> None:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    state = theirs.state_dict()
    assert torch.equal(ours.model.embedding.weight, state["model.embed_tokens.weight"])
    for layer in (0, 17, 29):
        for name, published in names.items():
            weight = ours.model.state_dict()[f"stack.blocks.{layer}.attention.{name}.weight"]
            assert torch.equal(weight, state[f"model.layers.{layer}.self_attn.{published}.weight"])


def test_logits_and_greedy_text_are_those_of_transformers(ours: Bundle, theirs: Any) -> None:
    for prompt in PROMPTS[:2]:
        ids = ours.tokenizer.encode(prompt)
        check_logits(ours.model, theirs, ids)
        found = ours.generate(prompt, max_new_tokens=16)
        assert found.tokens == their_tokens(theirs, ids, 16, ours.eos_ids)


def test_the_control_queries_and_keys_in_the_order_of_the_file_are_seen(path: Path, theirs: Any) -> None:
    plan = plan_reading(path)
    broken = read_model(replace(plan, tensors=[tensor._replace(permuted_heads=0) for tensor in plan.tensors]))
    with pytest.raises(AssertionError):
        check_logits(broken, theirs, [504, 3575, 282, 4649, 314])


@pytest.mark.long
def test_twenty_texts_of_64_tokens_are_those_of_transformers(ours: Bundle, theirs: Any) -> None:
    for prompt in PROMPTS[:20]:
        found = ours.generate(prompt, max_new_tokens=64)
        assert found.tokens == their_tokens(theirs, ours.tokenizer.encode(prompt), 64, ours.eos_ids), prompt


@pytest.mark.long
def test_perplexity_is_that_of_transformers(ours: Bundle, theirs: Any, shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()[:12_000]
    ids = ours.tokenizer.encode(text)
    first = ours.tokenizer.bos_id
    with torch.inference_mode():
        logits = theirs(torch.tensor([[first, *ids]])).logits[0, :-1]
        nll = float(functional.cross_entropy(logits.double(), torch.tensor(ids)))
    found = ours.perplexity(text)
    assert found.num_tokens == len(ids)
    assert found.nll == pytest.approx(nll, rel=1e-4) and found.perplexity == pytest.approx(np.exp(nll), rel=1e-4)


PROGRAM = """
import json, re, sys
from pathlib import Path
from trivium.checkpoints.gguf_reading import plan_reading, read_model

def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

plan = plan_reading(sys.argv[1])
before = peak_bytes()
model = read_model(plan, dtype="bf16")
weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
sys.stdout.write(json.dumps({"weights": weights, "taken": peak_bytes() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
def test_loading_takes_one_copy_of_the_weights(path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    assert found["weights"] == 2 * 134_515_008
    assert found["weights"] < found["taken"] < 1.1 * found["weights"] + (32 << 20)


# --------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("small") / "small.gguf"
    config = config_of("llama")
    save_gguf(file, model_of(config), config, tokenizer(), dtype="fp32")
    return file


def rewritten(
    source: Path,
    path: Path,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    types: dict[str, Any] | None = None,
) -> Path:
    """A copy of a file in which some metadata and tensors are others; None leaves one out."""
    reader = gguf.GGUFReader(source)
    kept = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    kinds = {key: field.types[0] for key, field in reader.fields.items()} | (types or {})
    kept |= fields or {}
    writer = gguf.GGUFWriter(path, kept.pop("general.architecture"))
    for key, value in kept.items():
        usual = gguf.GGUFValueType.get_type(value) if value is not None else None
        if value is not None:
            kind = usual if isinstance(value, str | list | bool) else kinds.get(key) or usual
            writer.add_key_value(key, value, kind)
    arrays = {tensor.name: tensor.data for tensor in reader.tensors} | (tensors or {})
    for name, array in arrays.items():
        if array is not None:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_control_a_rewritten_file_opens(small: Path, tmp_path: Path) -> None:
    model, *_ = load_gguf(rewritten(small, tmp_path / "same.gguf"))
    original, *_ = load_gguf(small)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), original.parameters(), strict=True))


FILE_MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another architecture": ({"general.architecture": "mamba"}, {}, r'general\.architecture is "mamba"; llama, qwen2'),
    "a part": ({"split.count": 3}, {}, "one part of several"),
    "no width": ({"llama.embedding_length": None}, {}, r"has no llama\.embedding_length"),
    "a billion layers": ({"llama.block_count": 1 << 30}, {}, "block_count is 1073741824, with 20 tensors"),
    "no head": ({"llama.attention.head_count": 0}, {}, "head_count is 0"),
    "heads of many sizes": ({"llama.attention.head_count_kv": [2, 4]}, {}, "differs from layer to layer"),
    "half rotated": ({"llama.rope.dimension_count": 8}, {}, "must be the width of a head, 16"),
    "an unknown scaling": ({"llama.rope.scaling.type": "longrope"}, {}, "none, linear and yarn"),
    "another width": (
        {"llama.feed_forward_length": 96},
        {},
        r"ffn_gate.weight\" is \(192, 64\) and must be \(96, 64\)",
    ),
    "one missing": ({}, {"blk.1.attn_q.weight": None}, r"blk\.1\.attn_q\.weight is missing \(shape \(64, 64\)\)"),
    "one too many": ({}, {"blk.7.x": np.zeros((2, 3), np.float32)}, r'"blk\.7\.x" \(2, 3\) is unknown'),
    "no embeddings": ({}, {"token_embd.weight": None}, r"token_embd\.weight is missing"),
    "other wavelengths": ({}, {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}, "no other rule"),
    "too few wavelengths": ({}, {"rope_freqs.weight": np.full(3, 2.0, np.float32)}, "rope_freqs"),
    "no token": ({"tokenizer.ggml.eos_token_id": 5000}, {}, "eos_token_id"),
    "no vocabulary": ({"tokenizer.ggml.model": None}, {}, "tokenizer.ggml.model"),
}


@pytest.mark.parametrize("mistake", FILE_MISTAKES)
def test_a_file_that_does_not_fit_itself_is_refused(mistake: str, small: Path, tmp_path: Path) -> None:
    fields, tensors, words = FILE_MISTAKES[mistake]
    file = rewritten(small, tmp_path / "wrong.gguf", fields, tensors)
    with pytest.raises(UserError, match=words) as refused:
        load_gguf(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_mutants_of_a_whole_model_give_a_model_or_a_refusal(small: Path, tmp_path: Path) -> None:
    data, header_bytes = small.read_bytes(), read_header(small).tensors["token_embd.weight"].start
    file, refused = tmp_path / "mutant.gguf", 0
    for seed in range(300):
        file.write_bytes(mutated(data, header_bytes, seed))
        with contextlib.suppress(UserError):
            load_gguf(file)
            refused -= 1
        refused += 1
    assert 200 < refused < 300


def test_senseless_metadata_gives_a_model_or_a_refusal(small: Path, tmp_path: Path) -> None:
    """Each number of the metadata replaced by other numbers, and by what is no number."""
    senseless = [0, 1, -1, (1 << 31) - 1, 0.0, -1.0, 1e300, float("nan"), float("inf"), True, "text", [1, 2]]
    fields = read_header(small).fields
    for key in [key for key, value in fields.items() if type(value) in (int, float)]:
        for value in senseless:
            types = {int: gguf.GGUFValueType.INT64, float: gguf.GGUFValueType.FLOAT64}
            file = rewritten(small, tmp_path / "wrong.gguf", {key: value}, types={key: types.get(type(value))})
            assert read_header(file).fields[key] == value or value != value
            try:
                load_gguf(file)
            except UserError as error:
                assert str(file) in str(error)


def test_several_mistakes_are_told_at_once(small: Path, tmp_path: Path) -> None:
    wrong = {
        "blk.0.ffn_up.weight": None,
        "blk.1.ffn_norm.weight": np.ones(3, np.float32),
        "extra": np.ones(2, np.float32),
    }
    with pytest.raises(UserError) as refused:
        load_gguf(rewritten(small, tmp_path / "wrong.gguf", {}, wrong))
    for part in ("blk.0.ffn_up.weight is missing", '"blk.1.ffn_norm.weight" is (3,) and must be (64,)', '"extra" (2,)'):
        assert part in str(refused.value)


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    config = config_of("llama").changed(vocab_size=200)
    save_gguf(tmp_path / "m.gguf", model_of(config), config, tokenizer())
    with pytest.raises(UserError, match="the tokenizer has 300 entries, but there are 200 embeddings"):
        load_gguf(tmp_path / "m.gguf")
