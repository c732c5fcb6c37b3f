"""Special text stays text whatever the model, and no space is put where a text goes on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from tokenizer.test_bpe import UNITS, seconds
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.chat import ChatIds, ChatTemplate

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "<extra_id_0>"]
INST = """{{ bos_token }}
{%- for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]
{%- else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"""
TURNS = """{% for message in messages %}<s>{{ message.role }}
{{ message.content }}</s>
{% endfor %}{% if add_generation_prompt %}<s>assistant
{% endif %}"""
TALK = [
    {"role": "user", "content": "What is the school of Botchan?"},
    {"role": "assistant", "content": "A school in the country."},
    {"role": "user", "content": "And the teacher </s> there?"},
    {"role": "assistant", "content": "Red Shirt."},
]


def unigram(lines: list[str], pre_tokenizer: pre_tokenizers.PreTokenizer) -> Core:
    core = Core(models.Unigram())
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(lines, trainer)
    return core


def joined(lines: list[str], normalizer: normalizers.Normalizer | None, scheme: str | None) -> Core:
    """SentencePiece's BPE as Llama has it: with a normalizer, or with Metaspace."""
    core = Core(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(lines, trainer)
    core.pre_tokenizer = None if scheme is None else pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.normalizer = normalizer
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return core


@pytest.fixture(scope="module")
def cores(shared_data: Path) -> dict[str, Core]:
    lines = (shared_data / "botchan" / "botchan.txt").read_text("utf-8").splitlines()[:600]
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return {
        "unigram": unigram(lines, pre_tokenizers.Metaspace()),
        "t5": unigram(lines, split),
        "normalizer": joined(lines, prepend, None),
        "first": joined(lines, None, "first"),
        "always": joined(lines, None, "always"),
    }


def of(core: Core, template: str | None = None) -> Tokenizer:
    return Tokenizer(Core.from_str(core.to_str()), bos="<s>", eos="</s>", chat_template=template)


# ------------------------------------------------------------------------------------------------ special text


def forged(tokenizer: Any) -> bool:
    """Whether some text becomes a special token of another kind than the unknown one."""
    special = {i for token, i in tokenizer.special_tokens.items() if token != "<unk>"}
    tries = [form for t in tokenizer.special_tokens for form in (t, f"a{t}", f"a {t} b", f"{t}{t}", f"<{t}>")]
    return any(special & set(tokenizer.encode(text)) for text in tries)


NAMES = ["unigram", "t5", "normalizer", "first", "always"]


@pytest.mark.parametrize("name", NAMES)
def test_special_text_is_text(cores: dict[str, Core], name: str) -> None:
    tokenizer = of(cores[name])
    assert not forged(tokenizer)
    parsed = tokenizer.encode("a </s> b<extra_id_0>", parse_special=True)
    assert {tokenizer.eos_id, *tokenizer.sentinel_ids} <= set(parsed)


def test_control_the_library_itself_finds_special_tokens_in_text(cores: dict[str, Core]) -> None:
    tokenizer = of(cores["unigram"])
    tokenizer.__dict__["_plain"] = type(tokenizer._plain)(tokenizer._core)
    assert forged(tokenizer)


def test_merges_that_lead_to_a_special_token_are_not_followed() -> None:
    vocabulary = {token: i for i, token in enumerate(["<", "s", ">", "<s", "<s>", "▁"])}
    core = Core(models.BPE(vocab=vocabulary, merges=[("<", "s"), ("<s", ">")]))
    core.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(core, bos="<s>")
    assert core.encode("<s>", add_special_tokens=False).ids == [4], "control: the library follows them"
    assert tokenizer.encode("s<s>") == [1, 3, 2] and tokenizer.encode("s<s>", parse_special=True) == [1, 4]


def test_words_that_are_special_tokens_are_not_taken_whole() -> None:
    core = Core(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken("[SEP]", special=True)])
    assert Tokenizer(core).encode("a [SEP]") == [2, 0] and core.encode("[SEP]", add_special_tokens=False).ids == [1]


# ------------------------------------------------------------------------------------------------ continued text


@pytest.mark.parametrize("name", NAMES)
def test_pieces_that_continue_are_the_whole(cores: dict[str, Core], name: str) -> None:
    tokenizer = of(cores[name])
    text = "the school of the teacher"
    whole = tokenizer.encode(text)
    for cut in (3, 10, 13):  # at the ends of words
        assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:], after=text[:cut]) == whole
    inside = tokenizer.encode("scho") + tokenizer.encode("ol of", after="o")
    assert tokenizer.decode(inside) == "school of"
    control = tokenizer.encode("scho") + tokenizer.encode("ol of")
    assert tokenizer.decode(control) == "scho ol of"
    assert tokenizer.encode("", after="a") == []


@pytest.mark.parametrize("template", [INST, TURNS], ids=["inst", "turns"])
@pytest.mark.parametrize("name", NAMES)
def test_chats_are_encoded_as_the_whole_text_is(cores: dict[str, Core], name: str, template: str) -> None:
    tokenizer = of(cores[name], template)
    chat = tokenizer.chat
    assert chat is not None
    plain = [{**message, "content": message["content"].replace("</s> ", "")} for message in TALK]
    whole = tokenizer.encode(chat.render(plain), parse_special=True)
    encoded = chat.encode(plain)
    # Line breaks are no token border: there the pieces may be cut otherwise, but never get a space.
    assert encoded.ids == whole or tokenizer.decode(encoded.ids) == tokenizer.decode(whole)
    if template == INST:
        assert encoded.ids == whole
    for number in (1, 3):
        prompt = chat.encode(plain[:number], add_generation_prompt=True).ids
        assert encoded.ids[: len(prompt)] == prompt
    assert chat.encode(TALK).ids.count(tokenizer.eos_id) == encoded.ids.count(tokenizer.eos_id), "nothing is forged"


def test_control_pieces_encoded_alone_get_spaces(cores: dict[str, Core], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = of(cores["normalizer"], TURNS)
    whole = tokenizer.decode(tokenizer.encode(tokenizer.chat.render(TALK[:2]), parse_special=True))

    def alone(self: ChatTemplate, text: str, special: Any, cuts: set[int], answers: Any) -> ChatIds:
        pieces = pairwise(sorted({0, len(text)} | cuts))
        return ChatIds([i for a, b in pieces for i in tokenizer.encode(text[a:b], parse_special=True)], [])

    assert tokenizer.decode(tokenizer.chat.encode(TALK[:2]).ids) == whole
    monkeypatch.setattr(ChatTemplate, "_encode_pieces", alone)
    assert tokenizer.decode(tokenizer.chat.encode(TALK[:2]).ids) != whole


def test_byte_level_tokenizers_put_no_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("ab c", after="x") == tokenizer.encode("ab c") and tokenizer._continuing is None


# ------------------------------------------------------------------------------------------------ it never stalls


def grows_faster_than_the_text(encode: Any, unit: str) -> bool:
    """Whether twice the text takes much more than twice the time (four times, if the time is quadratic)."""
    lengths = (200_000 // len(unit.encode()), 400_000 // len(unit.encode()))
    return all(seconds(encode, unit * lengths[1]) > 3.2 * seconds(encode, unit * lengths[0]) for _ in range(3))


@pytest.mark.parametrize("unit", ["letter", "space", "punctuation", "ideograph", "word", "accent"])
@pytest.mark.parametrize("name", ["unigram", "t5", "normalizer", "bert"])
def test_long_runs(cores: dict[str, Core], shared_data: Path, name: str, unit: str) -> None:
    folder = shared_data / "tokenizers" / "bert-base-uncased"
    encode = (Tokenizer.load(folder) if name == "bert" else of(cores[name])).encode
    assert not grows_faster_than_the_text(encode, UNITS[unit])


def test_control_quadratic_encoding_is_caught(cores: dict[str, Core]) -> None:
    encode = of(cores["unigram"]).encode

    def quadratic(text: str) -> list[int]:
        return [i for end in range(0, len(text), 50_000) for i in encode(text[:end])]

    assert grows_faster_than_the_text(quadratic, "a")


def test_a_megabyte_without_a_border(cores: dict[str, Core]) -> None:
    for name in NAMES:
        assert len(of(cores[name]).encode("a" * 1_000_000)) > 1000


def test_saved_and_loaded_it_is_the_same(cores: dict[str, Core], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name in NAMES:
        tokenizer = of(cores[name])
        tokenizer.save(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        for text in ("the school, of  Botchan", " a", "", "é😀漢"):
            assert tokenizer.encode(text) == theirs(text, add_special_tokens=False).input_ids
        assert json.loads(Tokenizer.load(tmp_path / name).to_json()) == json.loads(tokenizer.to_json())
