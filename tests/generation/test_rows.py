"""What of the chosen tokens becomes text: the sentinels of an encoder-decoder do, other special tokens do not."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from trivium.generation.rows import build_rows, build_rules
from trivium.generation.settings import GenerationSettings
from trivium.models.config import Kind, ModelConfig
from trivium.tokenizer.bpe import Tokenizer


def written(kind: Kind, tokenizer: Tokenizer, ids: list[int], **settings: object) -> str:
    """The text of `ids`, had a model of that kind chosen them; the pieces shown on the way join to it."""
    asked = GenerationSettings(max_new_tokens=len(ids), **settings)
    config = ModelConfig(kind=kind, vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2)
    (row,) = build_rows(config, tokenizer, ["a"], asked, None)
    ends = build_rules(config, tokenizer, asked, None).ends
    pieces = [row.push(token, 0.0, ends) for token in ids if row.finish_reason is None]
    assert "".join(pieces) == row.generation().text
    return row.generation().text


def unigram(text: str) -> Tokenizer:
    """A Unigram vocabulary as T5 has it, whose pieces look different by what stands before them."""
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_1>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([text], trainer)
    return Tokenizer(core, eos="</s>", pad="<pad>")


def test_gaps_can_be_told_apart(text: str, source_tokenizer: Tokenizer) -> None:
    for tokenizer in (source_tokenizer, unigram(text)):
        first, second = tokenizer.sentinel_ids[:2]
        ids = [tokenizer.pad_id, first, *tokenizer.encode("for"), second, *tokenizer.encode("text"), tokenizer.eos_id]
        assert written("encoder-decoder", tokenizer, ids).replace(" ", "") == "<extra_id_0>for<extra_id_1>text"
        assert written("encoder-decoder", tokenizer, ids, stop=["<extra_id_1>"]).replace(" ", "") == "<extra_id_0>for"
        # The control: a decoder is taught no gaps, and all its special tokens are hidden.
        assert written("decoder", tokenizer, ids).replace(" ", "") == "fortext"


def test_without_sentinels_the_text_is_that_of_the_tokenizer(text: str, source_tokenizer: Tokenizer) -> None:
    ids = [source_tokenizer.mask_id, *source_tokenizer.encode("naïve 日本"), source_tokenizer.pad_id]
    for kind in ("decoder", "encoder-decoder"):
        assert written(kind, source_tokenizer, ids) == source_tokenizer.decode(ids, skip_special=True) == "naïve 日本"
