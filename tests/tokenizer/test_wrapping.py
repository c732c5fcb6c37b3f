"""What is put around texts is what the library puts there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers, processors

from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.wrapping import Slot, Wrapping, read_wrapping, set_wrapping

SPECIAL = [("<s>", 0), ("</s>", 1)]
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s>:1 $B:1 <s>:0 </s>:1", special_tokens=SPECIAL
)
REVERSED = processors.TemplateProcessing(single="$A:1 </s>", pair="$B:1 </s> $A", special_tokens=SPECIAL)
PROCESSORS: dict[str, Any] = {
    "none": None,
    "byte level": processors.ByteLevel(trim_offsets=False),
    "bert": processors.BertProcessing(("</s>", 1), ("<s>", 0)),
    "roberta": processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
    "template": TEMPLATE,
    "second text first": REVERSED,
    "llama 3": processors.Sequence([processors.ByteLevel(trim_offsets=True), TEMPLATE]),
}


def core_with(processor: Any) -> Core:
    core = Core(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "?": 4}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<s>", "</s>"])
    if processor is not None:
        core.post_processor = processor
    return core


def as_the_library(core: Core, wrapping: Wrapping) -> bool:
    single, pair = core.encode("a b"), core.encode("a b", "b a a")
    return wrapping.wrap([2, 3], None) == (single.ids, single.type_ids) and wrapping.wrap([2, 3], [3, 2, 2]) == (
        pair.ids,
        pair.type_ids,
    )


@pytest.mark.parametrize("name", PROCESSORS)
def test_each_kind_of_post_processor(name: str) -> None:
    core = core_with(PROCESSORS[name])
    assert as_the_library(core, read_wrapping(core))
    for other in PROCESSORS:  # control: another post-processor's rule is noticed
        same = {other, name} <= {"none", "byte level"} or {other, name} <= {"template", "llama 3"}
        assert as_the_library(core, read_wrapping(core_with(PROCESSORS[other]))) == (same or other == name)


def test_set_and_read_again() -> None:
    core = core_with(None)
    set_wrapping(core, ["<s>", "$A"], ["<s>", "$A", "</s>", "$B:1", "</s>:1"])
    assert read_wrapping(core).pair == (Slot((0,), 0), Slot("A", 0), Slot((1,), 0), Slot("B", 1), Slot((1,), 1))
    assert as_the_library(core, read_wrapping(core))
    with pytest.raises(UserError, match="no token '<x>'"):
        set_wrapping(core, ["<x>", "$A"], ["$A", "$B"])


def test_a_beginning_is_put_once() -> None:
    assert Wrapping().beginning_with(0).wrap([2], [3]) == ([0, 2, 0, 3], [0, 0, 1, 1])
    wrapping = read_wrapping(core_with(TEMPLATE))
    assert wrapping.beginning_with(0) is wrapping


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        Tokenizer(core_with(processors.Sequence([TEMPLATE, TEMPLATE])))
    strange = processors.TemplateProcessing(single="<x> $A", special_tokens=[("<x>", 77)])
    with pytest.raises(UserError, match="not in the vocabulary"):
        Tokenizer(core_with(strange))


def test_damaged_files_of_other_kinds(shared_data: Path, tmp_path: Path) -> None:
    """Whatever is changed in a tokenizer.json, it is refused in one line or works."""
    unigram = Core(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("a", -2.0), ("▁", -3.0)], 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    unigram.add_special_tokens(["</s>", "<unk>"])
    set_wrapping(unigram, ["$A", "</s>"], ["$A", "</s>", "$B", "</s>"])
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##b\n")
    good = [unigram.to_str(), Tokenizer.load(tmp_path).to_json(), core_with(PROCESSORS["roberta"]).to_str()]
    draw, refused = random.Random(3), 0
    values = [None, 0, -1, 2**32, 1e300, "", "x", [], {}, [[]], True, "(a", "BPE", "Metaspace", {"String": "a"}]
    for number in range(450):
        content = json.loads(good[number % 3])
        node, parent, key = content, None, None
        while isinstance(node, dict | list) and node and draw.random() < 0.8:
            parent, key = node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = node[key]
        if parent is None:
            continue
        parent[key] = draw.choice(values)
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        try:
            loaded = Tokenizer.load(tmp_path)
            ids = loaded.encode("a ab </s> é") + loaded.encode("a b", after="a")
            loaded.decode(loaded.wrap(ids, ids)[0])
            loaded.word_starts(ids)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100
