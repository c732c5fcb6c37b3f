"""What is exported is compared with its source: a faithful copy passes, a changed one does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.gguf_models import config_of, model_of, tokenizer
from trivium.checkpoints import gguf_writing
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.export import export
from trivium.checkpoints.verification import NEW_TOKENS, compare
from trivium.checkpoints.verification_prompts import PROMPTS
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = config_of("llama")
    return Bundle(model_of(config), tokenizer(), config, (tokenizer().eos_id,))


def changed(bundle: Bundle, name: str = "stack.blocks.1.attention.query.weight") -> Bundle:
    """The same with the rows of one matrix in another order."""
    model = model_of(bundle.config)
    weight = model.state_dict()[name]
    weight.copy_(weight.flip(0))
    return replace(bundle, model=model)


def test_there_are_32_prompts_of_many_kinds() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 32
    assert any("日" in text for text in PROMPTS) and any("def " in text for text in PROMPTS)


def test_a_model_and_itself_are_the_same_and_a_changed_one_is_not(bundle: Bundle) -> None:
    same = compare(bundle, bundle)
    assert same.kl_mean == same.kl_max == 0.0 and same.top1_agreement == 1.0
    assert same.same_texts == same.same_ids == same.prompts == 32 and same.positions > 32 * 8
    assert all(same.passes(dtype) for dtype in ("fp32", "fp16", "q4_0"))
    other = compare(bundle, changed(bundle))
    assert other.kl_mean > 0.05 and other.same_texts < 32 and other.same_ids == 32
    assert not (other.passes("fp32") or other.passes("bf16"))


def test_kl_is_that_of_the_definition(bundle: Bundle) -> None:
    other = changed(bundle)
    found = compare(bundle, other, PROMPTS[:1])
    ids = torch.tensor([bundle.tokenizer.encode(PROMPTS[0])])
    if bundle.tokenizer.adds_bos:
        ids = torch.cat((torch.tensor([[bundle.tokenizer.bos_id]]), ids), 1)
    with torch.inference_mode():
        p, q = (model(ids)[0].double().softmax(-1) for model in (bundle.model, other.model))
    divergences = (p * (p / q).log()).sum(-1)
    assert found.positions == ids.shape[1]
    assert found.kl_mean == pytest.approx(float(divergences.mean()), rel=1e-6)
    assert found.kl_max == pytest.approx(float(divergences.max()), rel=1e-6)
    assert found.top1_agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())


def test_another_tokenizer_is_seen(bundle: Bundle) -> None:
    other = Tokenizer.train(texts=["quite another text, with other words in it. " * 20], vocab_size=300)
    assert not compare(bundle, replace(bundle, tokenizer=other), PROMPTS[:4]).passes("q4_0")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "q8_0", "q4_0"])
def test_gguf(dtype: str, bundle: Bundle, tmp_path: Path) -> None:
    done = export(bundle, "gguf", tmp_path / "small.gguf", dtype=dtype, verify=True)
    found = done.verification
    assert found is not None and done.passed and done.num_bytes == (tmp_path / "small.gguf").stat().st_size
    assert found.same_ids == 32
    if dtype == "fp32":
        assert found.kl_mean == 0.0 and found.same_texts == 32
    else:
        assert 0 < found.kl_mean < found.kl_max
    readme = (tmp_path / "small.README.md").read_text()
    assert done.readme == tmp_path / "small.README.md"
    assert f"weights stored as {dtype}" in readme and f"{found.kl_mean:.2e} nats" in readme
    assert f"| same greedy text | {found.same_texts} of 32 |" in readme


def test_hf(bundle: Bundle, tmp_path: Path) -> None:
    done = export(bundle, "hf", tmp_path / "small", verify=True)
    assert done.passed and done.dtype == "fp32" and done.verification.kl_max < 1e-9
    readme = (tmp_path / "small" / "README.md").read_text()
    assert (
        readme.startswith("---\n")
        and "## Compared with its source" in readme
        and "| same greedy text | 32 of" in readme
    )
    half = export(bundle, "hf", tmp_path / "half", dtype="bf16")
    assert half.verification is half.passed is None and half.num_bytes < done.num_bytes
    assert "Compared" not in half.readme.read_text()


def test_the_control_a_writer_that_mixes_up_rows_does_not_pass(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gguf_writing._as_theirs
    monkeypatch.setattr(
        gguf_writing, "_as_theirs", lambda tensor, *others: whole(tensor._replace(permuted_heads=0), *others)
    )
    done = export(bundle, "gguf", tmp_path / "small.gguf", dtype="fp32", verify=True)
    assert done.passed is False and "IT IS BEYOND the bound of 1e-06" in done.readme.read_text()


# --------------------------------------------------------------------------------------- other kinds of models


def of_family(family: str, own: Tokenizer, **changes: object) -> Bundle:
    """A small model of a family."""
    base = {"vocab_size": own.vocab_size, "width": 32, "layers": 2, "heads": 4, "max_positions": 512}
    config = ModelConfig(**{**base, "kind": FAMILIES[family].kind, **FAMILIES[family].shape, **changes})
    return Bundle(model_of(config), own, config, family=family)


def test_an_encoder_is_judged_by_what_it_fills_in(tmp_path: Path) -> None:
    own = Tokenizer.train(texts=["some words to learn from, and others. " * 20], vocab_size=300, kind="encoder")
    bundle = of_family("bert", own)
    done = export(bundle, "hf", tmp_path / "bert", verify=True)
    assert done.passed and done.verification.same_texts == 32 and done.verification.kl_max < 1e-9
    other = compare(bundle, changed(bundle))
    assert other.same_texts < 32 and not other.passes("fp32")


def test_an_encoder_without_head_by_its_hidden_states(tmp_path: Path) -> None:
    own = Tokenizer.train(texts=["some words to learn from, and others. " * 20], vocab_size=300, kind="encoder")
    config = FAMILIES["bert"].with_head(of_family("bert", own).config, "none")
    bundle = Bundle(model_of(config), own, config, family="bert")
    done = export(bundle, "hf", tmp_path / "bert", verify=True)
    assert done.passed and done.verification.kl_mean is None and done.verification.largest_difference < 1e-6
    assert not compare(bundle, changed(bundle)).passes("fp32")


def test_a_classifier_by_its_probabilities(tmp_path: Path) -> None:
    own = Tokenizer.train(texts=["some words to learn from, and others. " * 20], vocab_size=300, kind="encoder")
    config = FAMILIES["bert"].with_head(of_family("bert", own).config, "classification", ("bad", "good", "neither"))
    bundle = Bundle(model_of(config), own, config, family="bert")
    done = export(bundle, "hf", tmp_path / "bert", verify=True)
    assert done.passed and done.verification.positions == 32 and done.verification.same_texts is None
    assert not compare(bundle, changed(bundle)).passes("fp32")


def test_an_encoder_decoder_by_the_targets_it_writes(tmp_path: Path) -> None:
    own = Tokenizer.train(texts=["some words to learn from, and others. " * 20], vocab_size=400, kind="encoder-decoder")
    bundle = of_family("t5", own)
    done = export(bundle, "hf", tmp_path / "t5", verify=True)
    assert done.passed and done.verification.same_texts == 32 and done.verification.kl_max < 1e-9
    assert done.verification.positions <= 32 * (NEW_TOKENS + 1)
    assert not compare(bundle, changed(bundle, "decoder.blocks.1.cross.query.weight")).passes("fp32")
    with pytest.raises(UserError, match="this is an encoder-decoder: save it as a Hugging Face directory"):
        export(bundle, "gguf", tmp_path / "t5.gguf")


def test_minilm_as_gguf_gives_the_same_vectors(tmp_path: Path) -> None:
    try:
        bundle = load("minilm-l6")
    except UserError as error:
        pytest.skip(f"needs real weights: {error}")
    done = export(bundle, "gguf", tmp_path / "minilm.gguf", dtype="fp32", verify=True)
    assert done.passed and done.verification.largest_difference < 1e-6


# --------------------------------------------------------------------------------------------- what is refused


def test_what_does_not_go_together_is_refused_before_anything_is_written(bundle: Bundle, tmp_path: Path) -> None:
    for to, out, dtype, words in (
        ("onnx", "x", None, "there is no format onnx: use hf or gguf"),
        ("hf", "x", "q8_0", "hf cannot be written in q8_0: use fp32, bf16, fp16"),
        ("gguf", "x.gguf", "int8", "gguf cannot be written in int8: use fp32, fp16, bf16, q8_0, q4_0"),
        ("gguf", "x", None, "needs a file whose name ends in .gguf"),
        ("hf", "x.gguf", None, "needs a directory"),
    ):
        with pytest.raises(UserError, match=words):
            export(bundle, to, tmp_path / out, dtype=dtype)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match="is no file"):
        export(bundle, "gguf", tmp_path / "folder.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.gguf"]
