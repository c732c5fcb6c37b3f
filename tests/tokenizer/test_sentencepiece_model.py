"""SentencePiece's files, read by hand: the ids are those of its own package, and a damaged file is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tokenizer.samples import differing, texts
from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.pieces import Pieces, bpe_core
from trivium.tokenizer.sentencepiece_model import read_model

sentencepiece = pytest.importorskip("sentencepiece")

OPTIONS = {
    "unigram": {"model_type": "unigram"},
    "unigram as Llama": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "bpe as Llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "bpe as Gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<start_of_turn>", "▁▁", "▁▁▁", "\n\n"],
    },
    "unigram across words": {"model_type": "unigram", "split_by_whitespace": False},
}


@pytest.fixture(scope="module")
def learned(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model for each set of options, learned by the package itself."""
    folder = tmp_path_factory.mktemp("models")
    lines = (shared_data / "botchan" / "botchan.txt").read_text("utf-8").splitlines()[:1200]
    lines += (shared_data / "multi30k" / "val.de").read_text("utf-8").splitlines()[:400]
    for name, options in OPTIONS.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / name),
            vocab_size=800,
            num_threads=1,
            minloglevel=2,
            pad_id=3,
            **options,
        )
    return {name: folder / f"{name}.model" for name in OPTIONS}


def theirs(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_the_published_model(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "sentencepiece" / "botchan_en_bpe_1000.model"
    ours, package, chosen = Tokenizer.load(path), theirs(path), texts(shared_data)
    assert not differing(ours.encode, package.encode, chosen)
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (package.bos_id(), package.eos_id(), package.unk_id())
    assert ours.wrap([7]) == ([1, 7], [0, 0]) and ours.adds_bos
    for text in chosen[:100]:
        ids = ours.encode(text)
        if ours.unk_id not in ids:  # which the package writes as U+2047
            assert ours.decode(ids) == package.decode(ids)


@pytest.mark.parametrize("name", OPTIONS)
def test_models_learned_by_the_package(shared_data: Path, learned: dict[str, Path], name: str) -> None:
    ours, package = Tokenizer.load(learned[name]), theirs(learned[name])
    chosen = [*texts(shared_data), "a <start_of_turn> b<start_of_turn>c   d\n\ne", "</s> a<s>", "<unk> <pad>"]
    if "bpe" in name:
        chosen.append("a <0x41>")
    assert not differing(ours.encode, package.encode, chosen)
    assert ours.vocab_size == package.vocab_size()
    for text in chosen[:100]:
        ids = ours.encode(text)
        if ours.unk_id not in ids:
            assert ours.decode(ids) == package.decode(ids)


def test_controls(shared_data: Path, learned: dict[str, Path]) -> None:
    path, chosen = learned["bpe as Llama"], texts(shared_data)
    pieces = read_model(path.read_bytes()).pieces
    package = theirs(path)

    def wrong(**changes: object) -> bool:
        core = bpe_core(Pieces(**{**vars(pieces), **changes}))
        return bool(differing(Tokenizer(core).encode, package.encode, chosen))

    assert not wrong()
    assert wrong(adds_prefix=False)
    assert wrong(removes_spaces=True)
    assert wrong(scores=[-score for score in pieces.scores])
    assert wrong(types=[1 if kind == 6 else kind for kind in pieces.types])


def test_a_directory_as_t5_has_it(learned: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(learned["unigram"].read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 10}')
    ours = Tokenizer.load(tmp_path)
    assert ours.sentinel_ids == [809, 808, 807, 806, 805, 804, 803, 802, 801, 800]
    assert ours.wrap([7], [8]) == ([7, ours.eos_id, 8, ours.eos_id], [0] * 4)
    ours.save(tmp_path / "saved")
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "Botchan <extra_id_0> went <extra_id_9>."
    assert saved(text).input_ids == ours.wrap(ours.encode(text, parse_special=True))[0]


def test_damaged_files_are_refused(learned: dict[str, Path], tmp_path: Path) -> None:
    good = learned["unigram"].read_bytes()
    path, draw, refused = tmp_path / "tokenizer.model", random.Random(2), 0
    damages = [b"", b"\x0a", good[:-1], good[:1000], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"text\n" * 50]
    for _ in range(80):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            data[draw.choice((draw.randrange(60), draw.randrange(len(data))))] = draw.randrange(256)
        damages.append(bytes(data))
    for number, data in enumerate(damages):
        path.write_bytes(data)
        try:
            loaded = Tokenizer.load(tmp_path)
            loaded.decode(loaded.encode("hello </s> é"))
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
            refused += 1
        else:
            assert number >= 6
    assert refused > 30


@pytest.mark.parametrize("model_type", ["word", "char"])
def test_other_kinds_are_refused(shared_data: Path, tmp_path: Path, model_type: str) -> None:
    lines = (shared_data / "botchan" / "botchan.txt").read_text("utf-8").splitlines()[:300]
    prefix = str(tmp_path / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=prefix,
        vocab_size=70,
        model_type=model_type,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    with pytest.raises(UserError, match="words or characters"):
        Tokenizer.load(tmp_path)
