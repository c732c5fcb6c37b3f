"""Model directories: what `transformers` makes of ours and we of theirs, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from trivium.checkpoints.config_files import read_eos_ids, read_generation
from trivium.checkpoints.directory import load_model_directory, load_weights, save_model_directory, save_weights
from trivium.errors import UserError
from trivium.families import FAMILIES
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
    "unknown type": (lambda path: edit(path, model_type="lama"), "supported are llama.*; did you mean llama"),
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "modernbert", "bart", "t5"])
def test_mutated_files_are_refused_or_read(family: str, tmp_path: Path) -> None:
    """100 directories with bytes of config.json or of the weights' header changed: never another kind of error."""
    shape = {"vocab_size": 320, "width": 32, "layers": 2, "heads": 4, "max_positions": 64}
    config = ModelConfig(**{**FAMILIES[family].shape, **shape})
    save_weights(tmp_path / "m", fresh(config), config, family=family)
    saved = tmp_path / "m"
    pick = random.Random(0)
    originals = {name: (saved / name).read_bytes() for name in ("config.json", "model.safetensors")}
    refused = 0
    for _ in range(100):
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
            read_generation(saved)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 3000
        (saved / name).write_bytes(originals[name])
    assert refused > 50


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
