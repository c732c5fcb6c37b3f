"""What is written as GGUF is read back here, by `transformers` and by llama.cpp as the same model."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from checkpoints.gguf_models import SHAPES, config_of, model_of, some_ids, tokenizer
from checkpoints.gguf_transformers import read_by_transformers
from trivium.checkpoints import gguf_writing
from trivium.checkpoints.bundle import load
from trivium.checkpoints.gguf_file import read_header
from trivium.checkpoints.gguf_names import ARCHITECTURES, obstacles
from trivium.checkpoints.gguf_reading import load_gguf
from trivium.checkpoints.gguf_writing import FORMATS, GgufDtype, save_gguf
from trivium.errors import UserError
from trivium.generation.generate import generate
from trivium.generation.settings import GenerationSettings
from trivium.models.build import Model
from trivium.models.config import ModelConfig

# llama.cpp sums in another order; it also looks GELU up in a table of fp16 numbers.
CLOSE, CLOSE_WITH_GELU = 2e-5, 2e-3
# What transformers reads from a GGUF file as llama.cpp does; there it sees nothing of scaled rotary positions, biases.
READ_BY_TRANSFORMERS = ("llama", "qwen2", "qwen3", "gemma2", "gpt2")


def logits_of(model: Model, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0].numpy()


def saved(path: Path, name: str, dtype: GgufDtype = "fp32") -> tuple[Model, ModelConfig]:
    config = config_of(name)
    model = model_of(config)
    save_gguf(path, model, config, tokenizer(), dtype=dtype)
    return model, config


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


# ------------------------------------------------------------------------------------------------- read back by us


@pytest.mark.parametrize("name", SHAPES)
def test_fp32_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model, config = saved(tmp_path / "m.gguf", name)
    back, own, read, eos_ids = load_gguf(tmp_path / "m.gguf")
    differing = {field for field in ModelConfig.model_fields if getattr(read, field) != getattr(config, field)} - {
        "dropout",
        "attention_dropout",
        "init_std",
    }
    assert not differing
    assert eos_ids == (tokenizer().eos_id,) and own.encode("the café 🙂") == tokenizer().encode("the café 🙂")
    assert own.vocab_size == tokenizer().vocab_size < config.vocab_size
    for key, parameter in back.state_dict().items():
        expected = model.state_dict()[key]
        if config.norm == "rmsnorm_around_one" and key.endswith("norm.weight"):  # stored with 1 added
            expected = (expected + 1.0) - 1.0
        assert torch.equal(parameter, expected), key


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0", "q4_0"])
def test_other_formats_hold_what_they_can(dtype: GgufDtype, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model, config = saved(path, "llama-untied-biased", dtype)
    file = read_header(path)
    formats = FORMATS[dtype]
    assert file.fields["general.file_type"] == formats.file_type
    for name, tensor in file.tensors.items():
        matrix = formats.embeddings if name in ("token_embd.weight", "output.weight") else formats.matrices
        assert tensor.kind == ("F32" if len(tensor.shape) == 1 else matrix)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, ours in (("token_embd", "embedding"), ("blk.1.ffn_down", "stack.blocks.1.mlp.down")):
        parameter = model.state_dict()[f"{ours}.weight"]
        stored = theirs[f"{name}.weight"]
        assert np.array_equal(stored.data, gguf.quantize(parameter.numpy(), stored.tensor_type))
    back, *_ = load_gguf(path)
    for name, parameter in model.state_dict().items():
        error = float((back.state_dict()[name] - parameter).abs().max() / parameter.abs().max())
        assert error <= {"fp16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127, "q4_0": 1 / 8}[dtype]
    # Written again it is the same file: nothing is lost twice.
    save_gguf(tmp_path / "again.gguf", back, config, tokenizer(), dtype=dtype, name="m")
    if dtype != "q4_0":  # a block's largest number is -8 there and comes back as it is, its scale may not
        assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_rows_that_are_no_whole_blocks_are_stored_as_f16(tmp_path: Path) -> None:
    config = config_of("llama").changed(width=48, heads=4, mlp_width=80)
    save_gguf(tmp_path / "m.gguf", model_of(config), config, tokenizer(), dtype="q8_0")
    kinds = {name: tensor.kind for name, tensor in read_header(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.0.ffn_down.weight"] == kinds["token_embd.weight"] == "F16"
    load_gguf(tmp_path / "m.gguf")


def test_a_table_of_characters_is_stored_as_bytes(tmp_path: Path) -> None:
    """llama.cpp reads `precompiled_charsmap` only as a list of unsigned bytes."""
    key = "tokenizer.ggml.precompiled_charsmap"
    fields = {key: [0, 255, 7], "tokenizer.ggml.other": [0, 255, 7]}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    gguf_writing._write_fields(writer, fields)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = gguf.GGUFReader(tmp_path / "m.gguf").fields
    kinds = gguf.GGUFValueType
    assert read[key].types == [kinds.ARRAY, kinds.UINT8] and read[key].contents() == fields[key]
    assert read["tokenizer.ggml.other"].types == [kinds.ARRAY, kinds.INT32]  # the control: as it was before
    assert read_header(tmp_path / "m.gguf").fields[key] == fields[key]


# ------------------------------------------------------------------------------------------- read back by others


def check_llama_cpp(path: Path, model: Model, config: ModelConfig) -> None:
    """llama.cpp computes the same logits from the file, and goes on greedily with the same tokens and text."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp")
    ids = some_ids(config)
    theirs = llama_cpp.Llama(
        str(path),
        n_ctx=128,
        n_threads=1,
        verbose=False,
        logits_all=True,
        type_k=0,  # the cache in fp32
        type_v=0,
        flash_attn=False,
    )
    try:
        theirs.eval(ids)
        close = CLOSE if config.activation == "silu" else CLOSE_WITH_GELU
        assert difference(logits_of(model, ids), np.array(theirs.scores[: len(ids)])) < close
        prompt = tokenizer().encode("It was the age")
        assert theirs.tokenize(b"It was the age", add_bos=False) == prompt
        greedy = []
        for token in theirs.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
            greedy.append(token)
            if len(greedy) == 24:
                break
    finally:
        theirs.close()
    settings = GenerationSettings(max_new_tokens=24, ignore_eos=True)
    (ours,) = generate(model, tokenizer(), [prompt], settings)
    assert ours.tokens == greedy


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    model, config = saved(tmp_path / "m.gguf", name)
    check_llama_cpp(tmp_path / "m.gguf", model, config)


def test_the_control_rows_in_our_order_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama.cpp")
    whole = gguf_writing._as_theirs
    monkeypatch.setattr(
        gguf_writing, "_as_theirs", lambda tensor, *others: whole(tensor._replace(permuted_heads=0), *others)
    )
    model, config = saved(tmp_path / "m.gguf", "llama")
    with pytest.raises(AssertionError):
        check_llama_cpp(tmp_path / "m.gguf", model, config)
    with pytest.raises(AssertionError):
        test_fp32_comes_back_as_it_was("llama", tmp_path)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    model, config = saved(tmp_path / "m.gguf", name)
    theirs = read_by_transformers(tmp_path / "m.gguf")
    ids = some_ids(config)
    with torch.inference_mode():
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    assert difference(logits_of(model, ids), logits) < CLOSE


def test_llama_cpp_makes_the_same_vectors_of_texts(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp")
    try:
        bundle = load("minilm-l6")
    except UserError as error:
        pytest.skip(f"needs real weights: {error}")
    save_gguf(tmp_path / "m.gguf", bundle.model, bundle.config, bundle.tokenizer, dtype="fp32")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), embedding=True, n_ctx=256, n_threads=1, verbose=False)
    try:
        for text in ("The weather is lovely today.", "Unaffable naïve résumé, 日本語 and 12345!"):
            ids, types = bundle.tokenizer.wrap(bundle.tokenizer.encode(text))
            assert theirs.tokenize(text.encode()) == ids
            with torch.inference_mode():
                hidden = bundle.model(torch.tensor([ids]), types=torch.tensor([types]))[0].mean(0)
            vector = (hidden / hidden.norm()).double().numpy()
            assert vector @ np.array(theirs.embed(text, normalize=True)) > 0.99999
    finally:
        theirs.close()


# ----------------------------------------------------------------------------------------------- what is refused


def test_a_shape_that_no_architecture_has_is_refused_with_what_stands_against_it(tmp_path: Path) -> None:
    config = config_of("llama").changed(positions="alibi")
    with pytest.raises(UserError, match=r"no architecture of GGUF files .* positions must be rotary"):
        save_gguf(tmp_path / "m.gguf", model_of(config), config, tokenizer())
    for scaling, words in (
        ({"method": "dynamic", "original_max_positions": 128}, "method must not be dynamic"),
        ({"method": "yarn", "original_max_positions": 64, "beta_fast": 24.0}, "must be 32 and 1"),
        ({"method": "llama3", "original_max_positions": 64, "high_frequency_factor": 8.0}, "no other rule"),
    ):
        config = config_of("llama").changed(rope_scaling={"factor": 2.0, **scaling}, rope_theta=500_000.0)
        (found,) = obstacles(ARCHITECTURES["llama"], config)
        assert words in found
    assert not list(tmp_path.iterdir())


def test_weights_that_a_format_cannot_hold_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model, config = saved(path, "llama")
    before = path.read_bytes()
    weight = model.state_dict()["stack.blocks.1.mlp.up.weight"]
    weight[3, 4] = 70_000.0
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight holds numbers up to 7e\+04, too large for F16"):
        save_gguf(path, model, config, tokenizer(), dtype="fp16")
    weight[3, 4] = float("nan")
    for dtype in FORMATS:
        with pytest.raises(UserError, match="the model is damaged"):
            save_gguf(path, model, config, tokenizer(), dtype=dtype)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    config = config_of("llama")
    with pytest.raises(UserError, match="is no file"):
        save_gguf(tmp_path, model_of(config), config, tokenizer())
