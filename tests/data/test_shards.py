from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers

from data.samples import ByteTokenizer, WideByteTokenizer, random_documents, shards_of
from trivium.data import shards as shards_module
from trivium.data.corpus import standard_library_rows
from trivium.data.shards import DOCUMENTS_NAME, INDEX_NAME, Shards, build_shards, fingerprint_of, open_shards
from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer

BUILD_PROGRAM = Path(__file__).parent / "programs" / "build_shards.py"


def texts_of(shards: Shards, tokenizer: ByteTokenizer) -> list[str]:
    texts = []
    for number in range(shards.num_documents):
        ids = shards.document(number).tolist()
        assert ids[-1] == tokenizer.eos_id and tokenizer.eos_id not in ids[:-1]
        texts.append(tokenizer.decode(ids[:-1]))
    return texts


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WideByteTokenizer()], ids=["uint16", "uint32"])
@pytest.mark.parametrize("shard_tokens", [7, 64, 1 << 20])
def test_every_document_comes_back(tmp_path: Path, tokenizer: ByteTokenizer, shard_tokens: int) -> None:
    documents = random_documents(60)
    shards = shards_of(documents, tmp_path / "s", tokenizer, shard_tokens)
    assert texts_of(shards, tokenizer) == documents
    assert shards.num_bytes == sum(len(text.encode()) for text in documents)
    assert shards.num_tokens == shards.num_bytes + len(documents)
    assert shards.index.dtype == ("uint16" if tokenizer.vocab_size < 1 << 16 else "uint32")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "s").glob("tokens-*"))]
    width = np.dtype(shards.index.dtype).itemsize
    assert all(size == shard_tokens * width for size in sizes[:-1]) and 0 < sizes[-1] <= shard_tokens * width
    whole = shards.tokens(0, shards.num_tokens)
    assert np.array_equal(shards.tokens(5, 40), whole[5:40])
    assert len(shards.tokens(3, 3)) == 0
    open_shards(tmp_path / "s", verify=True)


def test_documents_without_text_are_dropped_and_counted(tmp_path: Path) -> None:
    shards = shards_of(["", "a", " \n", "b", ""], tmp_path / "s")
    assert texts_of(shards, ByteTokenizer()) == ["a", "b"]
    assert shards.index.num_empty_documents == 3
    nothing = shards_of(["", " "], tmp_path / "n")
    assert (nothing.num_documents, nothing.num_tokens) == (0, 0)


def learned_tokenizer() -> Tokenizer:
    return Tokenizer.train(texts=[row.values["text"] for row in list(standard_library_rows())[:40]], vocab_size=600)


def tokenizer_with_spaces() -> Tokenizer:
    """A word tokenizer that writes a space before every text, as SentencePiece's do."""
    core = Core(models.WordLevel({"<eos>": 0, "<unk>": 1, "▁one": 2, "two": 3, "\ntwo": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return Tokenizer(core, eos="<eos>")


@pytest.mark.parametrize("make", [learned_tokenizer, tokenizer_with_spaces])
def test_encoding_in_pieces_changes_no_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Tokenizer]
) -> None:
    tokenizer = make()
    documents = [row.values["text"] for row in list(standard_library_rows())[40:60]]
    documents += ["no line end " * 500, "one\ntwo\n" * 500, "\r\n\r\n\n a\n\tb\nc" * 200]
    expected = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)]
    monkeypatch.setattr(shards_module, "_PIECE_CHARACTERS", 50)
    monkeypatch.setattr(shards_module, "_BATCH_CHARACTERS", 900)
    shards = build_shards(documents, tokenizer, tmp_path / "s", made_from={})
    assert [shards.document(number).tolist() for number in range(len(documents))] == expected


def test_cutting_where_the_tokenizer_does_not_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: without the probes, the tokenizer that adds spaces gives other ids."""
    monkeypatch.setattr(shards_module, "_splits_at_line_ends", lambda tokenizer: True)
    with pytest.raises(AssertionError):
        test_encoding_in_pieces_changes_no_id(tmp_path, monkeypatch, tokenizer_with_spaces)


def test_pieces_keep_long_documents_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    class Watching(ByteTokenizer):
        def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
            nonlocal longest
            longest = max(longest, *map(len, texts))
            return super().encode_batch(texts)

    text = "all work and no play\n" * 100_000
    assert texts_of(shards_of([text, "x"], tmp_path / "s", Watching()), ByteTokenizer()) == [text, "x"]
    assert longest < 10_000


def test_the_same_fingerprint_is_built_once_and_another_again(tmp_path: Path) -> None:
    def never() -> Iterator[str]:
        raise AssertionError("read again")
        yield ""

    def build(documents: Any, made_from: dict[str, Any], tokenizer: ByteTokenizer | None = None) -> Shards:
        return build_shards(documents, tokenizer or ByteTokenizer(), tmp_path / "s", made_from=made_from)

    first = build(["one"], {"sha256": "a"})
    assert build(never(), {"sha256": "a"}).index == first.index
    with pytest.raises(AssertionError, match="read again"):
        build(never(), {"sha256": "b"})
    assert open_shards(tmp_path / "s").index == first.index, "a build that failed must leave the old shards"
    assert texts_of(build(["two"], {"sha256": "b"}), ByteTokenizer()) == ["two"]
    assert build(["two"], {"sha256": "b"}, WideByteTokenizer()).index.dtype == "uint32"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 4
    elif how == "truncate":
        del data[-3:]
    elif how == "grow":
        data += b"\0\0"
    path.write_bytes(data)
    if how == "delete":
        path.unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "grow", "delete"])
@pytest.mark.parametrize("name", ["tokens-00001.bin", DOCUMENTS_NAME, INDEX_NAME])
def test_damage_is_named_and_mended_by_building_again(tmp_path: Path, name: str, how: str) -> None:
    documents = random_documents(50)
    folder = tmp_path / "s"
    shards = shards_of(documents, folder, shard_tokens=256)
    damage(folder / name, how)
    with pytest.raises(UserError, match=name) as caught:
        open_shards(folder, verify=True)
    assert str(folder) in str(caught.value)
    rebuilt = build_shards(
        documents,
        ByteTokenizer(),
        folder,
        made_from={"test": documents},
        shard_tokens=256,
        verify=True,
    )
    assert rebuilt.index == shards.index
    assert texts_of(rebuilt, ByteTokenizer()) == documents


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Not one of the bits of any file can change unseen."""
    folder = tmp_path / "s"
    shards_of(random_documents(5), folder)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 60)):
            changed = bytearray(whole)
            changed[position] ^= 1 << (position % 8)
            path.write_bytes(changed)
            with pytest.raises(UserError, match=path.name):
                open_shards(folder, verify=True)
        path.write_bytes(whole)
    open_shards(folder, verify=True)


def test_without_verify_a_flipped_bit_passes(tmp_path: Path) -> None:
    """Broken control: sizes alone do not show it."""
    shards_of(random_documents(5), tmp_path / "s")
    damage(tmp_path / "s" / "tokens-00000.bin", "flip")
    open_shards(tmp_path / "s")


def test_a_hostile_index_is_damaged_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shards_of(["a"], folder)
    for content in (b"", b"[]", b"{}", b"null", b'{"sha256": 3}', b"[" * 10**5, b"\xff", json.dumps({"a": 1}).encode()):
        (folder / INDEX_NAME).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            open_shards(folder)
    with pytest.raises(UserError, match="holds no token shards"):
        open_shards(tmp_path / "nothing")


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    class Endless(ByteTokenizer):
        eos_id = None

    with pytest.raises(UserError, match="neither an end-of-text token nor a separator"):
        shards_of(["a"], tmp_path / "s", Endless())


def test_a_separator_closes_documents_where_nothing_else_does(tmp_path: Path) -> None:
    class LikeBert(ByteTokenizer):
        eos_id = None
        sep_id = 256

    class WithAnother(LikeBert):
        sep_id = 257

    shards = shards_of(["one", "two"], tmp_path / "s", LikeBert())
    assert (shards.index.eos_id, shards.document(1).tolist()) == (256, [*b"two", 256])
    assert fingerprint_of({}, LikeBert()) != fingerprint_of({}, WithAnother())


def test_ids_outside_the_vocabulary_are_a_bug_that_is_noticed(tmp_path: Path) -> None:
    class Wrong(ByteTokenizer):
        vocab_size = 100

    with pytest.raises(ValueError, match="outside its vocabulary"):
        shards_of(["zzz"], tmp_path / "s", Wrong())
    assert not (tmp_path / "s").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written to .*set another cache_directory"):
        shards_of(["a"], tmp_path / "file" / "s")


def run_builders(target: Path, log: Path, count: int) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        subprocess.Popen([sys.executable, str(BUILD_PROGRAM), str(target), str(log)], env=environment, text=True)
        for _ in range(count)
    ]


def test_of_several_processes_one_builds_and_all_get_the_same(tmp_path: Path) -> None:
    builders = run_builders(tmp_path / "s", tmp_path / "log", 3)
    assert [builder.wait(timeout=120) for builder in builders] == [0, 0, 0]
    log = (tmp_path / "log").read_text().split()
    assert log.count("read") == 1 and len({entry for entry in log if entry != "read"}) == 1
    open_shards(tmp_path / "s", verify=True)


def test_a_killed_builder_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    builder = run_builders(tmp_path / "s", tmp_path / "log", 1)[0]
    while not (tmp_path / "log").exists():
        assert builder.poll() is None
    builder.kill()
    builder.wait()
    assert not (tmp_path / "s").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-s-")]
    second = run_builders(tmp_path / "s", tmp_path / "log2", 1)[0]
    assert second.wait(timeout=120) == 0
    open_shards(tmp_path / "s", verify=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-s-")]


MEMORY_PROGRAM = """
import sys
from pathlib import Path
import torch
from data.samples import ByteTokenizer
from trivium.data.shards import build_shards
from trivium.training.memory import peak_bytes

def documents(count):
    for number in range(count):
        yield f"{number} " + "all work and no play\\n" * 5000

def peak():
    return peak_bytes(torch.device("cpu"))

build_shards(documents(20), ByteTokenizer(), Path(sys.argv[1], "w"), made_from={})
before = peak()
shards = build_shards(documents(500), ByteTokenizer(), Path(sys.argv[1], "s"), made_from={})
print(shards.num_tokens, peak() - before)
"""


def test_building_holds_little_of_a_large_corpus(tmp_path: Path) -> None:
    """50 MB of documents take at most 8 MB more than 2 MB do."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path)]
    tokens, grown = map(int, subprocess.check_output(command, env=environment).split())
    assert tokens > 50_000_000
    assert grown < 8 << 20
