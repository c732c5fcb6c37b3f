"""Tokenizers learned for each kind of model: special tokens, wrapping, and what `transformers` makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.kinds import KINDS, Kind
from trivium.tokenizer.wrapping import Slot, Wrapping

TEXTS = ["The teacher sees the student.", "def f(x):\n    return x  # größer 漢字 😀", "", " a", "a\n\n"]
MASKED = {
    "encoder": "The teacher [MASK] the student.[MASK]\n [MASK]",
    "encoder-decoder": "a <mask> b<extra_id_0> c <extra_id_99>",
}


@pytest.fixture(scope="module")
def learned(sources: list[Path]) -> dict[Kind, Tokenizer]:
    return {kind: Tokenizer.train(sources[:40], vocab_size=900, kind=kind) for kind in KINDS}


def wrapped_alike(ours: Wrapping, theirs: object, tokenizer: Tokenizer) -> bool:
    """Whether ids and types of one and of two texts are those of `transformers`."""
    for text in TEXTS:
        first, second = tokenizer.encode(text), tokenizer.encode("and more")
        expected = theirs(text, return_token_type_ids=True)
        if ours.wrap(first, None) != (expected.input_ids, expected.token_type_ids):
            return False
        expected = theirs(text, "and more", return_token_type_ids=True)
        if ours.wrap(first, second) != (expected.input_ids, expected.token_type_ids):
            return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_it_with_equal_ids(learned: dict[Kind, Tokenizer], kind: Kind, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = learned[kind]
    ours.save(tmp_path, max_length=128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode_batch(TEXTS) == theirs(TEXTS, add_special_tokens=False).input_ids
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role
    assert set(theirs.all_special_tokens) == set(ours.special_tokens)
    assert wrapped_alike(ours._wrapping, theirs, ours)
    dropped = Wrapping(ours._wrapping.single[:-1], ours._wrapping.pair[:-1])  # control
    untyped = Wrapping(ours._wrapping.single, tuple(Slot(s.content, 0) for s in ours._wrapping.pair))  # control
    assert not wrapped_alike(dropped, theirs, ours)
    assert wrapped_alike(untyped, theirs, ours) == (kind == "encoder-decoder")
    if kind in MASKED:
        ids = ours.encode(MASKED[kind], parse_special=True)
        assert ids == theirs(MASKED[kind], add_special_tokens=False).input_ids
    opened = Tokenizer.load(tmp_path)
    assert opened.fingerprint == ours.fingerprint and opened._names() == ours._names()
    assert opened.sentinel_ids == ours.sentinel_ids


def test_encoder(learned: dict[Kind, Tokenizer]) -> None:
    tokenizer = learned["encoder"]
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 1, 2, 3)
    assert tokenizer.mask_token == "[MASK]" and tokenizer.unk_id is None and tokenizer.sentinel_ids == []
    assert tokenizer.wrap([7, 8]) == ([1, 7, 8, 2], [0, 0, 0, 0])
    assert tokenizer.wrap([7, 8], [9]) == ([1, 7, 8, 2, 9, 2], [0, 0, 0, 0, 1, 1])
    assert tokenizer.wrap([7], []) == ([1, 7, 2, 2], [0, 0, 0, 1])
    with_space = tokenizer.encode("sees [MASK].", parse_special=True)
    assert with_space == tokenizer.encode("sees[MASK].", parse_special=True), "the mask swallows the space before it"
    assert 3 in with_space and 3 not in tokenizer.encode("sees [MASK].")
    assert tokenizer.decode(tokenizer.encode(" [MASK]")) == " [MASK]"


def test_encoder_decoder(learned: dict[Kind, Tokenizer]) -> None:
    tokenizer = learned["encoder-decoder"]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id, tokenizer.bos_id) == (0, 1, 2, None)
    assert tokenizer.sentinel_ids == [*range(3, 103)]
    assert tokenizer.token_of(tokenizer.sentinel_ids[7]) == "<extra_id_7>"
    assert tokenizer.wrap([200, 201]) == ([200, 201, 1], [0, 0, 0])


def test_decoder_is_as_it_was(learned: dict[Kind, Tokenizer], sources: list[Path]) -> None:
    plain = Tokenizer.train(sources[:40], vocab_size=900)
    assert plain.fingerprint == learned["decoder"].fingerprint
    assert plain.wrap([9]) == ([0, 9], [0, 0]) and plain.chat is not None
    assert plain.mask_id is plain.cls_id is plain.sep_id is plain.unk_id is plain.mask_token is None


def test_long_texts_with_a_mask(learned: dict[Kind, Tokenizer]) -> None:
    """A mask that swallows spaces must not be cut from them by a window."""
    tokenizer = learned["encoder"]
    text = "".join(f"word{' ' * (n % 9)}[MASK] " for n in range(4000))
    assert (
        tokenizer.encode(text, parse_special=True) == tokenizer._parsing.core.encode(text, add_special_tokens=False).ids
    )
    assert tokenizer.encode(text) == tokenizer._core.encode(text, add_special_tokens=False).ids


def test_mistakes() -> None:
    with pytest.raises(UserError, match="kind='bert' must be one of decoder, encoder, encoder-decoder"):
        Tokenizer.train(vocab_size=300, kind="bert")
    with pytest.raises(UserError, match="359"):
        Tokenizer.train(vocab_size=300, kind="encoder-decoder")
