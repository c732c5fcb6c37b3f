"""RELIABILITY R16: the tokenizer loses nothing, agrees with others, and never stalls."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from trivium.errors import UserError
from trivium.tokenizer import encoding
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.learning import DEFAULT_SPECIAL_TOKENS, WORD_PATTERN

CODE_POINTS = [*range(0xD800), *range(0xE000, 0x110000)]  # all that are characters: surrogates are not


# ------------------------------------------------------------------------------------------------ nothing is lost


def lossless(tokenizer: Tokenizer, strings: list[bytes]) -> bool:
    return all(tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data for data in strings)


def test_every_byte_and_every_pair_of_bytes_comes_back(tokenizer: Tokenizer) -> None:
    assert lossless(tokenizer, [bytes([a]) for a in range(256)])
    assert lossless(tokenizer, [bytes([a, b]) for a in range(256) for b in range(256)])


def test_every_code_point_comes_back(tokenizer: Tokenizer) -> None:
    assert len(CODE_POINTS) == 1_112_064
    chunks = ["".join(map(chr, CODE_POINTS[i : i + 4096])) for i in range(0, len(CODE_POINTS), 4096)]
    for chunk, ids in zip(chunks, tokenizer.encode_batch(chunks), strict=True):
        assert tokenizer.decode(ids) == chunk


def test_random_byte_strings_come_back(tokenizer: Tokenizer) -> None:
    draw = random.Random(16)
    assert lossless(tokenizer, [draw.randbytes(draw.randrange(48)) for _ in range(15_000)])
    # Nearly text: valid UTF-8 with one byte changed.
    texts = ["".join(map(chr, draw.choices(CODE_POINTS, k=12))).encode() for _ in range(5_000)]
    assert lossless(tokenizer, [t[:i] + draw.randbytes(1) + t[i + 1 :] for t in texts for i in [draw.randrange(12)]])


def test_control_a_decoder_that_drops_the_last_byte_is_caught(tokenizer: Tokenizer) -> None:
    broken = SimpleNamespace(
        encode_bytes=tokenizer.encode_bytes, decode_bytes=lambda ids: tokenizer.decode_bytes(ids)[:-1]
    )
    assert not lossless(broken, [b"ab"])
    lossy = SimpleNamespace(
        encode_bytes=lambda data: tokenizer.encode(data.decode("utf-8", "replace")), decode_bytes=tokenizer.decode_bytes
    )
    assert not lossless(lossy, [bytes([a]) for a in range(256)])


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(text.encode())) == text.encode()
    assert tokenizer.encode_bytes(text.encode()) == ids


@given(st.lists(st.text(max_size=30), max_size=8))
def test_a_batch_is_its_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_bytes_survive_tokenizers_that_change_their_text(tokenizer: Tokenizer) -> None:
    core = Core.from_str(tokenizer._core.to_str())
    core.normalizer = normalizers.NFC()
    text = "e\u0301 = é"  # NFC makes one character of the first two
    changing = Tokenizer(core)
    assert changing.decode(changing.encode(text)) != text
    assert lossless(changing, [text.encode(), b"\xff" + text.encode()])


# ------------------------------------------------------------------------------------------------ others agree


def test_ids_equal_those_of_transformers(tokenizer: Tokenizer, mixed_corpus: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path, max_length=512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs(mixed_corpus, add_special_tokens=False, truncation=False, verbose=False).input_ids
    assert tokenizer.encode_batch(mixed_corpus) == expected
    assert [tokenizer.decode(ids) for ids in expected] == mixed_corpus
    special = "a<|im_start|>b <|endoftext|>\n<|pad|>"
    assert tokenizer.encode(special, parse_special=True) == theirs(special, add_special_tokens=False).input_ids
    assert theirs(special).input_ids == [tokenizer.bos_id, *tokenizer.encode(special, parse_special=True)]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 1)
    assert set(theirs.all_special_tokens) == set(tokenizer.special_tokens) == set(DEFAULT_SPECIAL_TOKENS)
    assert theirs.model_max_length == 512
    broken = [101, 300, 200, 250, 0, 150]  # not UTF-8
    assert tokenizer.decode(broken) == theirs.decode(broken, clean_up_tokenization_spaces=False)


def test_ids_equal_those_of_another_implementation(tokenizer: Tokenizer, mixed_corpus: list[str]) -> None:
    """tiktoken shares no code with the `tokenizers` library: its own regex engine, its own merging."""
    tiktoken = pytest.importorskip("tiktoken")
    first = len(DEFAULT_SPECIAL_TOKENS)
    ranks = {tokenizer.decode_bytes([i]): i - first for i in range(first, tokenizer.vocab_size)}
    theirs = tiktoken.Encoding("ours", pat_str=WORD_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text, ids in zip(mixed_corpus, tokenizer.encode_batch(mixed_corpus), strict=True):
        assert [i - first for i in ids] == theirs.encode_ordinary(text)


def test_gpt2_as_published(shared_data: Path, tmp_path: Path) -> None:
    """Its files load, its ids are those llama.cpp's tests record, and it loses nothing either."""
    folder = shared_data / "tokenizers"
    core = Core(models.BPE.from_file(str(folder / "gpt2/encoder.json"), str(folder / "gpt2/vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>"])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == 50_257 and tokenizer.bos_id == 50_256 and tokenizer.is_byte_level
    cases = folder / "llama.cpp" / "ggml-vocab-gpt-2.gguf.inp"
    texts = cases.read_text("utf-8").split("\n__ggml_vocab_test__\n")
    expected = [list(map(int, line.split())) for line in cases.with_suffix(".out").read_text().splitlines()]
    assert tokenizer.encode_batch(texts[: len(expected)]) == expected
    assert lossless(tokenizer, [bytes([a]) for a in range(256)])


def test_other_kinds_of_tokenizers_load(shared_data: Path, tmp_path: Path) -> None:
    core = Core(
        models.WordPiece.from_file(
            str(shared_data / "tokenizers" / "bert-base-uncased" / "vocab.txt"), unk_token="[UNK]"
        )
    )
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"])
    core.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    core.enable_padding(length=64)
    core.enable_truncation(4)
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("Unbelievable: a [MASK]ed word")
    assert [tokenizer.token_of(i) for i in ids[:3]] == ["unbelievable", ":", "a"]
    assert 103 not in ids and 103 in tokenizer.encode("a [MASK]", parse_special=True)
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in ids] + [stream.finish()]) == tokenizer.decode(ids)
    with pytest.raises(UserError, match="not byte-level"):
        tokenizer.encode_bytes(b"a")
    with pytest.raises(UserError, match="not byte-level"):
        tokenizer.decode_bytes([103])


# ------------------------------------------------------------------------------------------------ it never stalls

UNITS = {
    "letter": "a",
    "space": " ",
    "newline": "\n",
    "digit": "1",
    "punctuation": "-",
    "emoji": "😀",
    "ideograph": "漢",
    "word": "ab ",
    "accent": "\u0301",
    "spaces and tab": "    \t",
}


def seconds(encode: Callable[[str], list[int]], text: str) -> float:
    """Processor time of one encoding, the least of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        encode(text)
        times.append(time.process_time() - start)
    return min(times)


def stalls(encode: Callable[[str], list[int]], unit: str, num_bytes: int) -> bool:
    half, whole = (unit * (n // len(unit.encode())) for n in (num_bytes // 2, num_bytes))
    long = seconds(encode, whole)
    return long > 2 * num_bytes / 1e6 or long / seconds(encode, half) > 2.3


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
def test_a_megabyte_of_one_pattern(tokenizer: Tokenizer, unit: str) -> None:
    assert not stalls(tokenizer.encode, unit, 1_000_000) or not stalls(tokenizer.encode, unit, 1_000_000)


def test_control_quadratic_encoding_is_caught(tokenizer: Tokenizer) -> None:
    def quadratic(text: str) -> list[int]:
        return [i for end in range(0, len(text), 1000) for i in tokenizer.encode(text[:end])]

    assert stalls(quadratic, "a b", 60_000)


def test_a_long_text_in_windows_has_the_ids_of_the_whole(tokenizer: Tokenizer, mixed_corpus: list[str]) -> None:
    text = "".join(mixed_corpus)
    assert len(text) > 50 * encoding.WINDOW
    whole = tokenizer._core.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == whole
    assert tokenizer.encode_batch(["a", text, "b"]) == [tokenizer.encode("a"), whole, tokenizer.encode("b")]


runs = st.lists(
    st.tuples(st.sampled_from([*UNITS.values(), "'s", "x1", "\r\n", "<|im_end|>", "é"]), st.integers(1, 300)),
    min_size=5,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(runs)
def test_windows_cut_anywhere(tokenizer: Tokenizer, pieces: list[tuple[str, int]]) -> None:
    text = "".join(unit * times for unit, times in pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "WINDOW", 1100)
        for parse_special in (False, True):
            core = tokenizer._parsing.core if parse_special else tokenizer._core
            whole = core.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text, parse_special=parse_special) == whole


def test_control_windows_cut_inside_words_are_caught(tokenizer: Tokenizer) -> None:
    text = "".join(" " * n + "word\n" for n in range(1, 400))
    naive = [i for start in range(0, len(text), 1100) for i in tokenizer.encode(text[start : start + 1100])]
    assert naive != tokenizer._core.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(naive) == text, "such a cut loses nothing, which is why only the ids can show it"


# ------------------------------------------------------------------------------------------------ special tokens


def test_special_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    text = "say <|im_end|> or <|endoftext|>"
    special = set(tokenizer.special_tokens.values())
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0], tokenizer.encode_bytes(text.encode())):
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text
    parsed = tokenizer.encode(text, parse_special=True)
    assert special & set(parsed) == {tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>")}
    assert tokenizer.decode(parsed) == text
    assert tokenizer.decode(parsed, skip_special=True) == "say  or "
    assert not special & set(tokenizer.encode(text)), "parsing once must not change what comes after"


def test_special_tokens_stay_text_in_worker_processes(tokenizer: Tokenizer) -> None:
    sent = copy.deepcopy(tokenizer)  # goes by the same road as sending it to another process
    text = "a <|im_end|>"
    assert sent.encode(text) == tokenizer.encode(text) and sent.fingerprint == tokenizer.fingerprint


def test_code_is_written_densely(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" " * 16)) <= 2
    assert tokenizer.encode("1234567") == [i for group in ("123", "456", "7") for i in tokenizer.encode(group)]


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("ids", [[-1], [2000], [5, 10**30], [1.5], ["a"], [None]])
def test_ids_that_are_none(tokenizer: Tokenizer, ids: list) -> None:
    for call in (tokenizer.decode, tokenizer.decode_bytes, lambda ids: tokenizer.token_of(ids[-1])):
        with pytest.raises(UserError, match=r"not in the vocabulary|whole numbers"):
            call(ids)
    with pytest.raises(UserError):
        tokenizer.stream().push(ids[-1])


def test_texts_that_are_none(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"text 1 holds U\+D800 at character 2"):
        tokenizer.encode_batch(["fine", "ab\ud800"])
    with pytest.raises(UserError, match=r"U\+DC80"):
        tokenizer.encode("x" * 40_000 + "\udc80")
    for wrong in (None, b"bytes", ["a", "b"]):
        with pytest.raises(UserError, match="not a string"):
            tokenizer.encode(wrong)
        with pytest.raises(UserError, match="not a string"):
            tokenizer.encode_batch(["a", wrong])
    with pytest.raises(UserError, match="no token 'nothing'"):
        tokenizer.id_of("nothing")


# ------------------------------------------------------------------------------------------------ load and save


def test_load_is_save_backwards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one")
    for path in (tmp_path / "one", tmp_path / "one" / "tokenizer.json", str(tmp_path / "one")):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded._names() == tokenizer._names()
    loaded.save(tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
    assert {f.name for f in (tmp_path / "one").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }


def test_the_fingerprint_is_of_the_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))  # another order, other white space
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).fingerprint != tokenizer.fingerprint


def test_whether_texts_begin_with_bos(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.adds_bos, "as they did in training"
    core = Core.from_str(tokenizer._core.to_str())
    core.post_processor = None
    bare = Tokenizer(core, bos="<|endoftext|>")
    assert not bare.adds_bos and bare.encode("a") == tokenizer.encode("a")
    bare.save(tmp_path)
    assert not Tokenizer.load(tmp_path).adds_bos
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).adds_bos
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|pad|>", "add_bos_token": false}')
    assert not Tokenizer.load(tmp_path).adds_bos


def test_another_chat_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain = tokenizer.with_chat_template(None)
    assert plain.chat is None and plain.fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path)
    plain.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat is None


DAMAGES = {
    "not json": (b"{", "is not a tokenizer"),
    "not utf-8": (b"\xff\xfe", "not UTF-8"),
    "other json": (b'{"a": 1}', "is not a tokenizer"),
    "deep": (b"[" * 100_000, "is not a tokenizer"),
    "empty": (b"", "is not a tokenizer"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"tokenizer\.json .*{message}"):
        Tokenizer.load(tmp_path)


def test_damaged_vocabularies_raise_nothing_but_user_errors(tokenizer: Tokenizer, tmp_path: Path) -> None:
    small = Tokenizer.train(texts=["hello world " * 20], vocab_size=270)
    small.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = path.read_text()
    draw = random.Random(4)
    values = [None, 0, -1, 2**32, 2**64, 1e300, "", "x", [], {}, [[]], True, "(a", "ByteLevel", "WordPiece"]
    refused = 0
    for _ in range(300):
        content = json.loads(good)
        node, parent, key = content, None, None
        while isinstance(node, dict | list) and node and draw.random() < 0.8:
            parent, key = node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = node[key]
        if parent is None:
            continue
        parent[key] = draw.choice(values)
        path.write_text(json.dumps(content))
        try:
            loaded = Tokenizer.load(tmp_path)
            loaded.decode(loaded.encode("hello <|im_end|> é"))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100
