"""The table of bytes is the library's own."""

from __future__ import annotations

from tokenizers import pre_tokenizers

from trivium.tokenizer.byte_tokens import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE, INVALID_UTF8


def test_each_byte_has_the_library_s_character() -> None:
    assert sorted(BYTE_OF_CHARACTER) == sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in (chr(point) for point in range(0x800)):
        written = "".join(word for word, _ in level.pre_tokenize_str(text))
        assert written == "".join(CHARACTER_OF_BYTE[byte] for byte in text.encode())


def test_stretches_that_are_not_utf8_are_found() -> None:
    data = b"ab\xff\xfec\xc3\xa9\xc3"
    assert INVALID_UTF8.split(data.decode("utf-8", "surrogateescape")) == ["ab", "\udcff\udcfe", "cé", "\udcc3", ""]
