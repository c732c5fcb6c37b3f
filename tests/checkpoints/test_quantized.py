"""Quantized directories: bit-equal logits, little memory, and everything damaged refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints.gguf_models import config_of, model_of, some_ids, tokenizer
from trivium.checkpoints import export as exporting
from trivium.checkpoints.bundle import Bundle, load, quantize
from trivium.checkpoints.config_files import read_config, read_scheme
from trivium.checkpoints.export import export
from trivium.checkpoints.gguf_writing import save_gguf
from trivium.checkpoints.quantized import DenseState
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.packing import unpack
from trivium.quantization.replacing import scheme_of
from trivium.quantization.schemes import FORMATS, scheme_for
from trivium.tokenizer.bpe import Tokenizer

PACKED = [name for name in FORMATS if name not in ("fp16", "bf16")]
MODELS = ["llama", "gpt2", "bert", "modernbert", "t5", "bart"]


def bundle_of(family: str) -> Bundle:
    """A small model of a family, drawn as training begins."""
    member = FAMILIES[family]
    learned = (
        tokenizer()
        if member.kind == "decoder"
        else Tokenizer.train(
            texts=["It was the best of times, it was the worst of times. " * 20], vocab_size=420, kind=member.kind
        )
    )
    base = {"vocab_size": 420, "width": 64, "layers": 2, "heads": 4, "max_positions": 128, "init_std": 0.1}
    config = ModelConfig(**{**base, **member.shape})
    model = build_model(config)
    initialise(model, config, 1)
    return Bundle(model.eval(), learned, config, family=family)


@torch.no_grad()
def logits(model: Model) -> Tensor:
    ids = torch.tensor([some_ids(model.config)])
    return model(ids, ids[:, :9]) if model.config.kind == "encoder-decoder" else model(ids)


# ------------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("format", FORMATS)
def test_saved_and_loaded_it_gives_bit_equal_logits(format: str, family: str, tmp_path: Path) -> None:
    original = bundle_of(family)
    made = quantize(original, format)
    assert made.model is not original.model and scheme_of(original.model) is None
    made.save(tmp_path / "m")
    precision = format if format in ("fp16", "bf16") else "fp32"
    found = load(tmp_path / "m", dtype=precision)
    assert torch.equal(logits(found.model), logits(made.model))
    # T5's files do not say how weights were drawn.
    assert read_config(tmp_path / "m")[1].changed(init_std=original.config.init_std) == original.config
    assert (
        scheme_of(found.model) == read_scheme(tmp_path / "m") == (None if precision != "fp32" else scheme_for(format))
    )
    assert read_scheme(tmp_path / "m") == read_scheme(tmp_path / "m" / "config.json")
    found.save(tmp_path / "again", dtype=precision if precision != "fp32" else None)
    weights = "model.safetensors" if format in ("fp16", "bf16") else "packed.safetensors"
    names = [weights, "config.json"]
    assert all((tmp_path / "m" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


@pytest.mark.parametrize("format", ["int8", "int4", "nf4"])
def test_the_control_one_code_of_the_file_that_differs_is_seen(format: str, tmp_path: Path) -> None:
    made = quantize(bundle_of("llama"), format)
    made.save(tmp_path / "m")
    _set(f"{DOWN}.packed", lambda codes: codes ^ torch.eye(*codes.shape).to(codes.dtype))(tmp_path / "m")
    assert not torch.equal(logits(load(tmp_path / "m").model), logits(made.model))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_dense_directory_is_packed_while_it_is_read(format: str, family: str, tmp_path: Path) -> None:
    original = bundle_of(family)
    original.save(tmp_path / "m")
    found = load(tmp_path / "m", quantize=format)
    assert torch.equal(logits(found.model), logits(quantize(original, format).model))
    assert scheme_of(found.model) == scheme_for(format)


@pytest.mark.parametrize("format", PACKED)
def test_it_computes_in_the_type_asked_for(format: str, tmp_path: Path) -> None:
    original = bundle_of("llama")
    original.save(tmp_path / "dense")
    quantize(original, format).save(tmp_path / "packed")
    one, two = load(tmp_path / "packed", dtype="bf16"), load(tmp_path / "dense", dtype="bf16", quantize=format)
    assert one.model.dtype == torch.bfloat16 and logits(one.model).dtype == torch.bfloat16
    assert torch.equal(logits(one.model), logits(two.model))
    one.save(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again", dtype="bf16").model), logits(one.model))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_models_are_kept_too(method: str, tmp_path: Path) -> None:
    original, scheme = bundle_of("llama"), scheme_for("int4", method=method)
    text = ["It was the age of wisdom, it was the age of foolishness. " * 60]
    made = quantize(original, scheme, calibration=text)
    assert not torch.equal(logits(made.model), logits(quantize(original, "int4").model))
    made.save(tmp_path / "m")
    assert torch.equal(logits(load(tmp_path / "m").model), logits(made.model))
    with pytest.raises(UserError, match="give more of it"):
        quantize(original, scheme, calibration=["short"])
    original.save(tmp_path / "dense")
    with pytest.raises(UserError, match=f"{method} looks at text, which loading does not: use trivium quantize"):
        load(tmp_path / "dense", quantize=scheme)


def test_modules_that_are_kept_are_stored_dense(tmp_path: Path) -> None:
    scheme = scheme_for("int4", keep=("embedding", "*.down"))
    made = quantize(bundle_of("llama"), scheme)
    made.save(tmp_path / "m")
    assert {"embedding.weight", "stack.blocks.0.mlp.down.weight"} < load_file(tmp_path / "m/packed.safetensors").keys()
    assert torch.equal(logits(load(tmp_path / "m").model), logits(made.model))


def test_without_a_type_a_quantized_model_is_saved_as_it_is_and_with_one_dense(tmp_path: Path) -> None:
    made = quantize(bundle_of("llama"), "int4")
    made.save(tmp_path / "dense", dtype="fp32")
    assert read_scheme(tmp_path / "dense") is None
    assert torch.allclose(logits(load(tmp_path / "dense").model), logits(made.model), rtol=1e-4, atol=1e-4)
    quantize(bundle_of("llama"), "bf16").save(tmp_path / "bf16")
    assert json.loads((tmp_path / "bf16/config.json").read_text())["dtype"] == "bfloat16"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32)
    ids = torch.tensor([some_ids(made.config)])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, logits(load(tmp_path / "bf16").model), rtol=1e-4, atol=1e-4)


def test_the_readme_says_how_to_use_it(tmp_path: Path) -> None:
    quantize(bundle_of("llama"), "int8").save(tmp_path / "m")
    card = (tmp_path / "m/README.md").read_text()
    assert "| weights stored as | int8 |" in card and "trivium export . --to hf" in card
    assert "from_pretrained" not in card and "library_name: trivium" in card


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("family, format", [("llama", "int8"), ("llama", "nf4"), ("bert", "int4"), ("t5", "int8")])
def test_transformers_refuses_it(family: str, format: str, tmp_path: Path) -> None:
    import transformers

    quantize(bundle_of(family), format).save(tmp_path / "m")
    classes = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModelForMaskedLM"}
    auto = getattr(transformers, classes.get(FAMILIES[family].kind, "AutoModelForSeq2SeqLM"))
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        auto.from_pretrained(tmp_path / "m")
    # The broken control: under the usual name it would be misread.
    (tmp_path / "m/packed.safetensors").rename(tmp_path / "m/model.safetensors")
    auto.from_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"packed\.safetensors: missing, though config\.json says"):
        load(tmp_path / "m")


def _set(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path / "packed.safetensors")
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, path / "packed.safetensors")

    return damage


def _edit(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        values = json.loads((path / "config.json").read_text())
        values["quantization_config"] |= changes
        (path / "config.json").write_text(json.dumps(values))

    return damage


def _rename(old: str, new: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path / "packed.safetensors")
        tensors[new] = tensors.pop(old)
        save_file(tensors, path / "packed.safetensors")

    return damage


def _cut(path: Path) -> None:
    content = (path / "packed.safetensors").read_bytes()
    (path / "packed.safetensors").write_bytes(content[:-100])


DOWN = "stack.blocks.1.mlp.down"
DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing": ("int8", _rename(f"{DOWN}.scales", "x"), rf"{DOWN}.scales is missing; \"x\" .* is unknown"),
    "shape": ("int8", _set(f"{DOWN}.packed", lambda t: t[:-1]), rf"{DOWN}.packed is \(63, .* and must be \(64, "),
    "type of codes": ("int8", _set(f"{DOWN}.packed", lambda t: t.short()), r"is stored as I16 and must be I8"),
    "type of scales": ("int4", _set(f"{DOWN}.scales", lambda t: t.float()), r"is stored as F32 and must be F16"),
    "type of norms": ("int4", _set("stack.norm.weight", lambda t: t.int()), r"is stored as I32 and must be F64 or F32"),
    "code": ("int8", _set(f"{DOWN}.packed", lambda t: torch.full_like(t, -128)), rf"{DOWN}: a code is -128"),
    "NaN": ("int4", _set(f"{DOWN}.scales", lambda t: t * torch.nan), rf"{DOWN}: a scale is infinite or not a number"),
    "inf": ("int4_asymmetric", _set(f"{DOWN}.offsets", lambda t: t + torch.inf), "a scale is infinite or not a number"),
    "negative": ("nf4", _set(f"{DOWN}.offsets", lambda t: t - 1e3), rf"{DOWN}: a scale is negative"),
    "cut off": ("int8", _cut, "not a whole safetensors file"),
    "format": ("int8", _edit(format="int3"), "quantization_config: format: "),
    "other format": ("int8", _edit(format="int4", group_size=32), "do not fit config.json"),
    "other group": ("int4", _edit(group_size=64), r"must be \(64, "),
    "unknown key": ("int8", _edit(blocks=3), "quantization_config: blocks: "),
    "keep": ("int8", _edit(keep=["nothing"]), "keep: the model has no module nothing"),
    "dense": ("int8", _edit(format="bf16"), "says bf16, which packs nothing"),
    "of others": ("int8", _edit(quant_method="gptq"), "quantization_config is set"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    format, damage, said = DAMAGES[name]
    quantize(bundle_of("llama"), format).save(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(UserError, match=said) as refused:
        load(tmp_path / "m")
    assert "\n" not in str(refused.value)
    assert name == "keep" or str(tmp_path / "m") in str(refused.value)


def test_a_packed_model_is_not_packed_again_nor_given_another_head(tmp_path: Path) -> None:
    made = quantize(bundle_of("llama"), "int8")
    made.save(tmp_path / "m")
    assert scheme_of(load(tmp_path / "m", quantize="int8").model) == scheme_for("int8")
    with pytest.raises(
        UserError, match=r"stored as int8, which cannot be quantized again .to int4.: take the original"
    ):
        load(tmp_path / "m", quantize="int4")
    with pytest.raises(UserError, match="stored as int8, which cannot be given another head"):
        load(tmp_path / "m", head="classification", labels=["a", "b"])
    with pytest.raises(UserError, match="cannot be quantized again"):
        quantize(made, "int4")
    with pytest.raises(UserError, match=r"there is no format 'int7'.*did you mean int"):
        load(tmp_path / "m", quantize="int7")


def test_weights_that_are_no_numbers_are_refused_while_they_are_read(tmp_path: Path) -> None:
    bundle_of("llama").save(tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    for format in ("int8", "bf16"):
        with pytest.raises(UserError, match=rf"{DOWN}.weight holds NaN"):
            load(tmp_path / "m", quantize=format)


# ----------------------------------------------------------------------------------------------------------------- GGUF


@pytest.mark.parametrize("name", ["llama", "llama-untied-biased", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype, format", [("q4_0", "int4"), ("q8_0", "int8"), ("q8_0", "int4")])
def test_gguf_blocks_are_taken_over(name: str, dtype: str, format: str, tmp_path: Path) -> None:
    config = config_of(name)
    save_gguf(tmp_path / "m.gguf", model_of(config), config, tokenizer(), dtype=dtype)  # type: ignore[arg-type]
    dense, packed = load(tmp_path / "m.gguf"), load(tmp_path / "m.gguf", quantize=format)
    unpacked = DenseState(packed.model)
    for key, tensor in dense.model.state_dict().items():
        found = unpacked[key]
        if (dtype, format) == ("q4_0", "int4") and ".mlp." in key and key.endswith("weight"):
            assert torch.equal(found, tensor), key  # the same blocks
        elif tensor.dim() == 1:
            assert torch.equal(found, tensor), key
        else:
            assert float((found - tensor).norm() / tensor.norm()) < 0.15, key
    if dtype == "q4_0":
        assert torch.equal(
            unpacked["stack.blocks.0.attention.query.weight"][3],
            dense.model.state_dict()["stack.blocks.0.attention.query.weight"][3],
        )


def test_q4_1_is_taken_over_bit_for_bit(tmp_path: Path) -> None:
    """The kind of the built-in SmolLM2, whose heads llama.cpp reorders."""
    config = config_of("llama")
    model = model_of(config)
    save_gguf(tmp_path / "m.gguf", model, config, tokenizer(), dtype="fp32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = field.types
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        data = tensor.data.astype(np.float32)
        if data.ndim == 2 and tensor.name != "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(tensor.name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dense, packed = load(tmp_path / "q.gguf"), load(tmp_path / "q.gguf", quantize="int4_asymmetric")
    unpacked = DenseState(packed.model)
    for key, tensor in dense.model.state_dict().items():
        assert key == "embedding.weight" or torch.equal(unpacked[key], tensor), key


@pytest.mark.parametrize("name", ["llama", "llama-untied-biased", "qwen3", "gpt2"])
def test_int4_is_exported_as_q4_0_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    tables = ("embedding",) if config.tied_embeddings else ("embedding", "head.output")
    scheme = scheme_for("int4", keep=tables)
    made = quantize(Bundle(model_of(config), tokenizer(), config), scheme)
    done = export(made, "gguf", tmp_path / "m.gguf", dtype="q4_0")
    assert done.dtype == "q4_0"
    again = load(tmp_path / "m.gguf", quantize=scheme)
    # GPT-2's files have query, key and value in one tensor, which is rounded again.
    stacked = ("query", "key", "value") if name == "gpt2" else ()
    for key, tensor in made.model.state_dict().items():
        if "stack" in key and not any(part in key for part in stacked):
            assert torch.equal(again.model.state_dict()[key], tensor), key
    for part in stacked:
        one, two = (
            unpack(model.stack.blocks[1].attention.get_submodule(part).matrix) for model in (made.model, again.model)
        )
        assert float((one - two).norm() / one.norm()) < 0.05, part
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    down = theirs["blk.1.ffn_down.weight"]
    numbers = gguf.dequantize(down.data, down.tensor_type)
    assert np.array_equal(numbers, unpack(made.model.get_submodule(DOWN).matrix).numpy())


def test_llama_cpp_reads_what_was_packed_here(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp")
    config = config_of("llama")
    made = quantize(Bundle(model_of(config), tokenizer(), config), "int4")
    for dtype in ("q4_0", "q8_0"):
        export(made, "gguf", tmp_path / "m.gguf", dtype=dtype)
        theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, n_threads=1, verbose=False)
        ids = some_ids(config, 24)
        theirs.eval(ids)
        with torch.no_grad():
            ours = load(tmp_path / "m.gguf").model(torch.tensor([ids]))[0]
        found = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
        # It rounds activations to 8 bits too.
        assert float((found - ours).norm() / ours.norm()) < 0.05
        theirs.close()


@pytest.mark.parametrize("format", ["int8", "int4", "nf4"])
def test_a_quantized_model_is_exported_dense(format: str, tmp_path: Path) -> None:
    made = quantize(bundle_of("llama"), format)
    assert export(made, "hf", tmp_path / "m", verify=True).passed
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    with torch.no_grad():
        found = theirs(torch.tensor([some_ids(made.config)])).logits
    assert torch.allclose(found, logits(made.model), rtol=1e-4, atol=1e-4)


def test_of_int8_dynamic_the_weights_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded activations are no part of what is written, and no error of it."""
    made = quantize(bundle_of("llama"), "int8_dynamic")
    done = export(made, "hf", tmp_path / "m", verify=True)
    assert done.passed and "not with its int8_dynamic products" in done.readme.read_text()
    weights = DenseState(made.model)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in load(tmp_path / "m").model.state_dict().items())
    # The control: compared with rounded activations, the same files would not pass as fp32.
    monkeypatch.setattr(exporting, "_without_rounded_activations", lambda bundle: bundle)
    assert export(made, "hf", tmp_path / "m", verify=True).passed is False


# --------------------------------------------------------------------------------------------------------------- verbs


def test_every_use_of_a_bundle_works_packed() -> None:
    causal, masked, pairs = (quantize(bundle_of(name), "int8") for name in ("llama", "bert", "t5"))
    assert causal.generate("It was", max_new_tokens=4).tokens
    assert causal.perplexity("It was the age of wisdom.").perplexity > 1
    assert len(causal.logprobs("It was")) == len(causal.tokenizer.encode("It was"))
    assert masked.fill_mask(f"It was the {masked.tokenizer.mask_token} of times")
    assert masked.embed("It was").shape == (1, 64)
    assert pairs.seq2seq("It was", max_new_tokens=4).tokens is not None


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("format", PACKED)
def test_a_classifier_keeps_its_probabilities(format: str, family: str, tmp_path: Path) -> None:
    base = bundle_of(family)
    config = FAMILIES[family].with_head(base.config, "classification", ("a", "b", "c"))
    model = build_model(config)
    initialise(model, config, 1)
    original = replace(base, model=model.eval(), config=config)
    quantize(original, format).save(tmp_path / "m")
    made = load(tmp_path / "m")
    assert made.config.labels == ("a", "b", "c") and scheme_of(made.model) == scheme_for(format)

    made.save(tmp_path / "unpacked", dtype="fp32")
    unpacked = load(tmp_path / "unpacked")

    def difference(other: Bundle) -> float:
        texts = ["It was the best of times", "times worst", "of the of the of"]
        pairs = [(other.classify(text).probabilities, made.classify(text).probabilities) for text in texts]
        return max(abs(one[label] - two[label]) for one, two in pairs for label in one)

    near = 0.03 if format == "int8_dynamic" else 1e-4
    assert difference(unpacked) < near and 0 < difference(original) < 0.1
    for module in made.model.modules():  # the broken control: scales of other rows
        if isinstance(module, PackedMatrix):
            module.scales = module.scales.roll(1, 0).contiguous()
    assert difference(unpacked) > near
