"""Model directories: what `transformers` makes of ours and we of theirs, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from trivium.checkpoints import directory
from trivium.checkpoints.config_files import read_eos_ids
from trivium.checkpoints.directory import load_model_directory, load_weights, save_model_directory, save_weights
from trivium.errors import UserError
from trivium.generation.settings import GenerationSettings
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer

TEXT = "It was the best of times, it was the worst of times. " * 20
CONFIG = ModelConfig(vocab_size=320, width=32, layers=2, heads=4, kv_heads=2, max_positions=64, init_std=0.2)
CONFIGS = {"tied": CONFIG, "untied, biased": CONFIG.changed(tied_embeddings=False, bias="all")}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(texts=[TEXT], vocab_size=300)


def fresh(config: ModelConfig, seed: int = 0) -> Decoder:
    model = build_model(config)
    initialise(model, config, seed)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model_directory(tmp_path / "m", fresh(CONFIG), CONFIG, tokenizer)
    return tmp_path / "m"


def edit(path: Path, **changes: object) -> None:
    """Change keys of a config.json."""
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, **changes}))


# ------------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_transformers_opens_it_with_equal_logits(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = fresh(config)
    save_model_directory(tmp_path / "m", model, config, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    ids = torch.randint(0, 320, (2, 60), generator=torch.Generator().manual_seed(0))
    expected = theirs(input_ids=ids).logits
    assert (model(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert AutoTokenizer.from_pretrained(tmp_path / "m").encode(TEXT) == [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.eos_id


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_tensor_comes_back_bit_for_bit(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = fresh(config)
    save_model_directory(tmp_path / "m", model, config, tokenizer)
    loaded, loaded_tokenizer, loaded_config = load_model_directory(tmp_path / "m")
    assert loaded_config == config
    assert loaded_tokenizer.fingerprint == tokenizer.fingerprint
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    save_model_directory(tmp_path / "again", loaded, config, tokenizer)
    for name in (file.name for file in (tmp_path / "m").iterdir()):
        same = (tmp_path / "m" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert same or name == "README.md", name


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@torch.no_grad()
def test_theirs_is_read_and_given_back_bit_for_bit(shards: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = LlamaForCausalLM(
        LlamaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=50)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shards)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shards == "20KB")
    model, config = load_weights(tmp_path / "theirs")
    ids = torch.randint(0, 320, (2, 30))
    assert (model(ids) - theirs(input_ids=ids).logits).abs().max() < 1e-6
    save_model_directory(tmp_path / "ours", model, config, tokenizer)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    expected = theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_can_be_stored_and_read_in_half_precision(dtype: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = fresh(CONFIG)
    save_model_directory(tmp_path / "m", model, CONFIG, tokenizer, dtype=dtype)  # type: ignore[arg-type]
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").dtype == kind
    half, _ = load_weights(tmp_path / "m", dtype=dtype)  # type: ignore[arg-type]
    whole, _ = load_weights(tmp_path / "m")
    for name, tensor in model.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor.to(kind))
        assert torch.equal(whole.state_dict()[name], tensor.to(kind).float())


def test_a_copy_of_tied_embeddings_is_accepted_if_it_is_one(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert load_weights(saved)[1] == CONFIG
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head\.weight is a copy .* but its numbers differ: set tie_word"):
        load_weights(saved)


def test_what_the_directory_says_about_itself(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = GenerationSettings(temperature=0.7, top_k=20, repetition_penalty=1.1, max_new_tokens=9)
    save_model_directory(
        tmp_path / "run" / "model", fresh(CONFIG), CONFIG, tokenizer, generation=settings, notes="Learned from Dickens."
    )
    theirs = GenerationConfig.from_pretrained(tmp_path / "run" / "model")
    assert (theirs.temperature, theirs.top_k, theirs.do_sample, theirs.max_new_tokens) == (0.7, 20, True, 9)
    assert read_eos_ids(tmp_path / "run" / "model") == (tokenizer.eos_id,)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    for words in ("# run\n", "Learned from Dickens.", "320 (embeddings shared", "AutoModelForCausalLM"):
        assert words in card
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_failed_save_leaves_the_old_directory(
    saved: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_model_directory(saved, fresh(CONFIG, seed=1), CONFIG, tokenizer)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_refuses_what_nothing_else_could_open(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = CONFIG.changed(norm="layernorm")
    with pytest.raises(UserError, match="norm must be rmsnorm"):
        save_model_directory(tmp_path / "m", fresh(config), config, tokenizer)
    with pytest.raises(ValueError, match="not one of its config"):
        save_model_directory(tmp_path / "m", fresh(CONFIG), CONFIG.changed(layers=3), tokenizer)
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------------------------------------- shards, families


def test_large_models_are_sharded_so_that_transformers_opens_them(tmp_path: Path) -> None:
    model = fresh(CONFIG.changed(tied_embeddings=False))
    save_weights(tmp_path / "one", model, model.config)
    save_weights(tmp_path / "many", model, model.config, largest_shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    assert len(shards) > 3 and {shard.name for shard in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for shard in shards:
        held = load_file(shard)
        assert sum(tensor.nbytes for tensor in held.values()) <= 20_000 or len(held) == 1
        assert all(index["weight_map"][name] == shard.name for name in held)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "many").state_dict()
    ours = load_weights(tmp_path / "many")[0].state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


def test_a_directory_without_tokenizer_says_all_that_transformers_needs(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        save_weights(tmp_path / name, fresh(config), config)
        values = json.loads((tmp_path / name / "config.json").read_text())
        assert values["tie_word_embeddings"] is config.tied_embeddings
        assert (values["model_type"], values["architectures"]) == ("llama", ["LlamaForCausalLM"])
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == config.tied_embeddings


def test_a_family_that_is_named_is_kept_or_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "m", fresh(CONFIG), CONFIG, family="llama")
    with pytest.raises(UserError, match="there is no family lama; did you mean llama"):
        save_weights(tmp_path / "n", fresh(CONFIG), CONFIG, family="lama")
    config = CONFIG.changed(norm="layernorm")
    with pytest.raises(UserError, match="the model is no llama: norm must be rmsnorm"):
        save_weights(tmp_path / "n", fresh(config), config, family="llama")
    assert not (tmp_path / "n").exists()


def stored_in(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory, whatever files they are in."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


SIZE = {"vocab_size": 99, "max_position_embeddings": 40}
SMALL = {**SIZE, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}
BART = {
    **SIZE,
    "d_model": 24,
    **{
        f"{stack}_{key}": n
        for stack in ("encoder", "decoder")
        for key, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 36))
    },
}
T5 = {"vocab_size": 99, "d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", SMALL),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 99, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL),
    "bert": ("BertForMaskedLM", SMALL),
    "bart": ("BartForConditionalGeneration", BART),
    "t5": ("T5ForConditionalGeneration", T5),
}


def published(name: str, *, head: str = "") -> Any:
    """A `transformers` model with drawn weights; `head` instead of the language model's."""
    class_name, sizes = THEIRS[name]
    if head:
        stem = {"llama": "Llama", "gpt2": "GPT2", "gpt_neox": "GPTNeoX", "bert": "Bert", "bart": "Bart", "t5": "T5"}
        class_name = stem[name] + head
    cls = getattr(transformers, class_name)
    model = cls(cls.config_class(**sizes))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model.eval()


def result(model: Any) -> Tensor:
    """What a model of ours or theirs makes of some ids."""
    ids = torch.arange(3, 33).view(2, 15)
    kind = model.config.kind if hasattr(model.config, "kind") else None
    with torch.no_grad():
        if kind is not None:
            return model(ids, ids) if kind == "encoder-decoder" else model(ids)
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **more)[0]


@pytest.mark.parametrize("shards", ["1GB", "10KB"])
@pytest.mark.parametrize("name", list(THEIRS))
def test_every_layout_of_names_and_tensors_goes_there_and_back(name: str, shards: str, tmp_path: Path) -> None:
    """Transposed, stacked, stacked by head and row tensors; one table under several names; prefixes."""
    theirs = published(name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shards)
    model, config = load_weights(tmp_path / "theirs")
    expected = result(theirs)
    assert (result(model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    save_weights(tmp_path / "ours", model, config, family=name, largest_shard_bytes=10_000)
    before, after = stored_in(tmp_path / "theirs"), stored_in(tmp_path / "ours")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) and tensor.dtype == after[key].dtype for key, tensor in before.items())
    reread = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(result(reread), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bart"])
def test_files_of_the_bare_model_are_read_in_both_directions(name: str, tmp_path: Path) -> None:
    """A trunk into a language model (with a new head), and a language model as a trunk; and both as transformers."""
    theirs = published(name)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.base_model.save_pretrained(tmp_path / "bare")
    lines: list[str] = []
    trunk, config = load_weights(tmp_path / "whole", head="none", note=lines.append)
    bare, bare_config = load_weights(tmp_path / "bare")
    assert config.head == bare_config.head == "none"
    assert torch.equal(result(trunk), result(bare))
    whole, _ = load_weights(tmp_path / "whole")
    assert torch.equal(hidden(whole), result(bare))
    save_weights(tmp_path / "ours", trunk, config, family=name)
    assert not any(key.startswith(theirs.base_model_prefix + ".") for key in stored_in(tmp_path / "ours"))
    expected = type(theirs.base_model).from_pretrained(tmp_path / "ours").eval()
    assert torch.allclose(result(expected), result(bare), atol=1e-5)
    again, _ = load_weights(tmp_path / "bare", head="lm", note=lines.append)
    assert torch.equal(hidden(again), hidden(whole))


def hidden(model: Any) -> Tensor:
    """Last hidden states of one of our models."""
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        if model.config.kind == "encoder-decoder":
            return model.hidden(ids, memory=model.memory(model.encode(ids)))[0]
        return model.hidden(ids) if model.config.kind == "encoder" else model.hidden(ids)[0]


def test_the_first_bert_files_say_gamma_and_beta(tmp_path: Path) -> None:
    theirs = published("bert")
    theirs.save_pretrained(tmp_path / "m")
    expected = load_weights(tmp_path / "m")[0].state_dict()
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in stored_in(tmp_path / "m").items()
    }
    weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(weights, tmp_path / "m" / "model.safetensors")
    found = load_weights(tmp_path / "m")[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    weights["bert.embeddings.LayerNorm.weight"] = weights["bert.embeddings.LayerNorm.gamma"].clone()
    save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r"LayerNorm.* and .*LayerNorm.* are the same tensor"):
        load_weights(tmp_path / "m")


# ------------------------------------------------------------------------------------------------------------ new heads


def new_head_is_right(path: Path, seed: int) -> bool:
    """A classifier on a language model: its trunk as in the file, its head as in a fresh model of this seed."""
    model, config = load_weights(path, head="classification", labels=["no", "yes", "maybe"], seed=seed)
    base = load_weights(path)[0].state_dict()
    new = fresh(config, seed).state_dict()
    return all(
        torch.equal(tensor, (new if name.startswith("head.") else base)[name])
        for name, tensor in model.state_dict().items()
    )


def test_a_new_head_alone_is_drawn(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    _, config = load_weights(saved, head="classification", labels=["no", "yes", "maybe"], note=lines.append)
    assert (config.head, config.labels, config.pooling) == ("classification", ("no", "yes", "maybe"), "last")
    assert lines == [f"{saved}: the classification head is new, drawn from seed 0: score.weight"]
    assert new_head_is_right(saved, 0) and new_head_is_right(saved, 7)
    # Broken control: a head left as torch happens to fill it is seen.
    monkeypatch.setattr(directory, "initialise", lambda *_: None)
    assert not new_head_is_right(saved, 7)


def test_everything_but_the_new_head_must_be_there(saved: Path) -> None:
    weights_without(saved)
    with pytest.raises(UserError, match=r"model.norm.weight is missing.*surprise\" \(2,\) is unknown"):
        load_weights(saved, head="classification", labels=["a", "b"])


@pytest.mark.parametrize(
    ("head", "labels", "words"),
    [
        ("classification", (), "needs labels: the names of its classes"),
        ("span", ("a",), "labels are for head=classification or head=token_classification"),
        (None, ("a",), "labels are for head=classification or head=token_classification"),
        ("ranking", (), "llama models have no ranking head: choose lm, "),
    ],
)
def test_heads_that_make_no_sense_are_refused(head: Any, labels: tuple[str, ...], words: str, saved: Path) -> None:
    with pytest.raises(UserError, match=words):
        load_weights(saved, head=head, labels=labels)


def test_other_classes_get_another_projection(saved: Path, tmp_path: Path) -> None:
    """Three classes in place of three others: equal shapes, yet not the same thing."""
    first, config = load_weights(saved, head="classification", labels=["no", "yes", "maybe"], seed=5)
    save_weights(tmp_path / "new", first, config)
    trained = first.state_dict()["head.output.weight"]
    lines: list[str] = []
    for labels in ((), ("no", "yes", "maybe")):
        same, same_config = load_weights(tmp_path / "new", head="classification", labels=labels, note=lines.append)
        assert same_config == config and torch.equal(same.state_dict()["head.output.weight"], trained) and not lines
    other, _ = load_weights(tmp_path / "new", head="classification", labels=["a", "b", "c"], note=lines.append)
    assert not torch.equal(other.state_dict()["head.output.weight"], trained)
    assert "left out: score.weight" in lines[0] and "new, drawn from seed 0: score.weight" in lines[1]
    back, back_config = load_weights(tmp_path / "new", head="lm", note=lines.append)
    assert back_config == load_weights(saved)[1] and torch.equal(hidden(back), hidden(first))


def test_a_trunk_may_have_another_name_under_another_head(saved: Path, tmp_path: Path) -> None:
    """`LlamaForQuestionAnswering` calls `model.` `transformer.`."""
    model, config = load_weights(saved, head="span")
    save_weights(tmp_path / "new", model, config)
    assert "transformer.embed_tokens.weight" in stored_in(tmp_path / "new")
    theirs = transformers.LlamaForQuestionAnswering.from_pretrained(tmp_path / "new").eval()
    assert torch.allclose(result(model)[..., 0], result(theirs), atol=1e-5)
    assert torch.equal(hidden(load_weights(tmp_path / "new", head="lm")[0]), hidden(load_weights(saved)[0]))


def test_a_layer_of_the_head_is_taken_where_the_file_has_it(tmp_path: Path) -> None:
    """BERT's pooler is part of a classifier; its transform for masked tokens is not."""
    lines: list[str] = []
    masked = published("bert")
    masked.save_pretrained(tmp_path / "masked")
    model, config = load_weights(tmp_path / "masked", head="classification", labels=["a", "b"], note=lines.append)
    assert torch.equal(model.state_dict()["head.hidden.weight"], fresh(config).state_dict()["head.hidden.weight"])
    assert "cls.predictions.transform.dense.weight" in lines[0] and "bert.pooler.dense.weight" in lines[1]
    both = published("bert", head="ForPreTraining")
    both.save_pretrained(tmp_path / "both")
    model, _ = load_weights(tmp_path / "both", head="classification", labels=["a", "b"])
    pooler = both.bert.pooler.dense.weight
    assert torch.equal(model.state_dict()["head.hidden.weight"], pooler)


def test_a_copy_alone_will_do(tmp_path: Path) -> None:
    theirs = published("t5")
    theirs.save_pretrained(tmp_path / "m")
    weights = stored_in(tmp_path / "m")
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, tmp_path / "m" / "model.safetensors")
    assert torch.equal(load_weights(tmp_path / "m")[0].embedding.weight, theirs.shared.weight)
    weights["decoder.embed_tokens.weight"] = weights["encoder.embed_tokens.weight"] + 1
    save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r"embed_tokens\.weight is a copy of shared\.weight, but its numbers differ"):
        load_weights(tmp_path / "m")


# -------------------------------------------------------------------------------------------------- damaged or hostile


def weights_without(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.norm.weight"]
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 4)
    weights["model.layers.9.surprise"] = torch.zeros(2)
    save_file(weights, path / "model.safetensors")


def test_all_tensors_that_do_not_fit_are_named(saved: Path) -> None:
    weights_without(saved)
    with pytest.raises(UserError) as caught:
        load_weights(saved)
    message = str(caught.value)
    assert "model.norm.weight is missing (shape (32,))" in message
    assert '"model.layers.1.mlp.up_proj.weight" is (3, 4) and must be (96, 32)' in message
    assert '"model.layers.9.surprise" (2,) is unknown' in message
    assert "\n" not in message


def pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def integer_weights(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    save_file(weights, path / "model.safetensors")


def shard_index(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        (path / "model.safetensors").rename(path / "elsewhere.safetensors")
        index = {"weight_map": {"model.norm.weight": name}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return make


def link_outside(path: Path) -> None:
    shard_index("shard-1.safetensors")(path)
    outside = path.parent / "secret.safetensors"
    (path / "elsewhere.safetensors").rename(outside)
    (path / "shard-1.safetensors").symlink_to(outside)


def device_as_config(path: Path) -> None:
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("/dev/zero")


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(content) and None


def truncated(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-7])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickle_only, "could run code and is never read; convert"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "model.safetensors or .* is missing"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json: cannot be read: No such file"),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "truncated": (truncated, "not a whole safetensors file"),
    "header that lies": (written("model.safetensors", b"\xff" * 7 + b"\x7f{}"), "not a whole safetensors file"),
    "empty weights": (written("model.safetensors", b""), "not a whole safetensors file"),
    "integers": (integer_weights, ".model.norm.weight. is stored as I8"),
    "not JSON": (written("config.json", b"{'a': 1}"), "config.json: not valid JSON"),
    "not UTF-8": (written("config.json", b"\xff\xfe"), "config.json: not valid JSON"),
    "a list": (written("config.json", b"[]"), "must hold a JSON object"),
    "NaN": (written("config.json", b'{"rms_norm_eps": NaN}'), "NaN is not a JSON number"),
    "deep JSON": (written("config.json", b'{"a":' + b"[" * 500_000), "not valid JSON"),
    "huge config": (written("config.json", b" " * (2 << 20)), "larger than"),
    "device as config": (device_as_config, "not a regular file"),
    "unknown type": (lambda path: edit(path, model_type="lama"), "supported are llama; did you mean llama"),
    "no type": (lambda path: edit(path, model_type=None), "model_type is null"),
    "a billion layers": (lambda path: edit(path, num_hidden_layers=1_000_000_000), "promises 1000000000 layers"),
    "a huge vocabulary": (lambda path: edit(path, vocab_size=1 << 29), r"must be \(536870912, 32\)"),
    "small vocabulary": (lambda path: edit(path, vocab_size=0), "vocab_size"),
    "custom code": (lambda path: edit(path, auto_map={"AutoModel": "x.Y"}), "auto_map is set"),
    "shard missing": (shard_index("shard-1.safetensors"), "missing, but the index names it"),
    "shard elsewhere": (shard_index("../x.safetensors"), "not the name of a safetensors file"),
    "absolute shard": (shard_index("/etc/passwd"), "not the name of a safetensors file"),
    "pickled shard": (shard_index("x.bin"), "not the name of a safetensors file"),
    "link outside": (link_outside, "links to a file outside"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damage_is_refused_in_one_line(name: str, saved: Path) -> None:
    damage, words = DAMAGES[name]
    load_model_directory(saved)
    damage(saved)
    with pytest.raises(UserError, match=words) as caught:
        load_model_directory(saved)
    assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


def test_mutated_files_are_refused_or_read(saved: Path) -> None:
    """400 directories with bytes of config.json or of the weights' header changed: never another kind of error."""
    pick = random.Random(0)
    originals = {name: (saved / name).read_bytes() for name in ("config.json", "model.safetensors")}
    refused = 0
    for _ in range(400):
        name = pick.choice(list(originals))
        content = bytearray(originals[name])
        for _ in range(pick.randint(1, 4)):
            place = pick.randrange(min(len(content), 2500))
            if pick.random() < 0.3:
                del content[place : place + pick.randint(1, 40)]
            else:
                content[place] = pick.choice(b'\x00\xff{}[]",:0129-eE\n' + bytes([pick.randrange(256)]))
        (saved / name).write_bytes(content)
        try:
            load_weights(saved)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 3000
        (saved / name).write_bytes(originals[name])
    assert refused > 200


def test_a_tokenizer_of_another_model_is_refused(saved: Path, tokenizer: Tokenizer) -> None:
    Tokenizer.train(texts=[TEXT], vocab_size=400, extra_special_tokens=[f"<{i}>" for i in range(70)]).save(saved)
    with pytest.raises(UserError, match="do not belong together"):
        load_model_directory(saved)


def test_a_hub_cache_may_link_to_its_blobs(saved: Path, tmp_path: Path) -> None:
    """The layout of huggingface_hub: snapshots/<revision>/file -> ../../blobs/<hash>."""
    repository = tmp_path / "models--someone--something"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    names = load_file(saved / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, file in enumerate(sorted(saved.iterdir())):
        shutil.move(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert load_model_directory(snapshot)[2] == CONFIG


PROGRAM = """
import sys, torch
from pathlib import Path
from trivium.checkpoints.directory import load_weights

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

load_weights(Path(sys.argv[1]), dtype="bf16")  # what torch needs once is not counted
before = status("VmRSS")
model, _ = load_weights(Path(sys.argv[2]), dtype="bf16")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
def test_loading_converts_tensor_by_tensor(saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """72 MB in fp32 become 36 MB in bf16: pages of the file, the result, and one tensor more are all that is needed."""
    config = ModelConfig(vocab_size=4096, width=512, layers=5, heads=8, max_positions=64)
    save_model_directory(tmp_path / "big", fresh(config), config, tokenizer)
    size = (tmp_path / "big" / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", PROGRAM, str(saved), str(tmp_path / "big")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 1.7 * size, f"{grown / size:.2f} x the file"
