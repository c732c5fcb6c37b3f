"""What the tests of the encoder-decoder families share, beside `parity.py`: configs both ways, and the seq2seq loss."""

from __future__ import annotations

import inspect
import json
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import parity
from trivium.checkpoints.layouts import join
from trivium.data.batch import IGNORED
from trivium.families import FAMILIES
from trivium.families.family import NOT_PUBLISHED, Family
from trivium.generation.generate import generate
from trivium.generation.settings import GenerationSettings
from trivium.models.build import Model, build_model
from trivium.models.config import ModelConfig
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.tokenizer.bpe import Tokenizer

ROWS, SOURCE, TARGET = 3, 13, 11
# Keys of a config of `transformers` that are not about the model's shape.
NOT_SHAPE = {"architectures", "transformers_version", "dtype", "use_cache", "label2id", "problem_type"}


def check_config_both_ways(family: Family, theirs: Any, architecture: str) -> ModelConfig:
    """A config of `transformers` read by us; written by us and read by both, it says the same."""
    values = {**json.loads(theirs.to_json_string(use_diff=False)), "architectures": [architecture]}
    config = family.read_config(values, "test")
    assert family.obstacles(config) == []
    written = {**family.write_config(config), "architectures": [architecture]}
    again = family.read_config(json.loads(json.dumps(written)), "test")
    for name in ModelConfig.model_fields:
        if name not in NOT_PUBLISHED:
            assert getattr(again, name) == getattr(config, name), name
    back = type(theirs)(**written).to_dict()
    for key, value in theirs.to_dict().items():
        if key in written and key not in NOT_SHAPE:
            assert back[key] == value, (key, back[key], value)
    return config


def check_fresh_model_is_a_member(family: Family, **shape: Any) -> ModelConfig:
    """Vocabulary, width, layers and heads are enough; every head of the family can be put on."""
    config = ModelConfig(**{"vocab_size": 40, "width": 24, "layers": 2, "heads": 3, **family.shape, **shape})
    assert family.obstacles(config) == []
    with torch.device("meta"):
        for head in family.heads:
            other = family.with_head(config, head, ("a", "b") if head == "classification" else ())
            assert family.obstacles(other) == []
            parameters = set(build_model(other).state_dict())
            placed = [name for weight in family.weights(other) for name in weight.ours]
            assert sorted(placed) == sorted(parameters)
        assert family.with_head(other, "lm") == config
    return config


def bart_keys(width: int, heads: int, inner: int, layers: int, decoder_layers: int, **more: Any) -> dict[str, Any]:
    """A config.json in the words of BART, whose stacks differ in depth only."""
    return {
        "vocab_size": 61,
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_position_embeddings": 100,
        "dropout": 0.0,
        **more,
    }


def batch(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source ids, their segments, decoder input, targets: rows of several lengths, padded on the right."""
    source = parity.random_ids(config, ROWS, SOURCE, seed=5)
    targets = parity.random_ids(config, ROWS, TARGET, seed=6)
    source_segments = torch.ones_like(source, dtype=torch.int32)
    for row in range(ROWS):
        source_segments[row, SOURCE - 3 * row :] = 0
        targets[row, TARGET - 2 * row :] = IGNORED
    source[source_segments == 0] = 1
    begin = torch.full((ROWS, 1), config.decoder_start_id)
    decoder_input = torch.cat((begin, targets[:, :-1].clamp(min=1)), 1)
    return source, source_segments, decoder_input, targets


def check_seq2seq_loss(reference: Any, model: Model, *, shifted_by_reference: bool = True) -> None:
    """The loss over the targets that are not padding, and its gradients, are the reference's.

    `shifted_by_reference`: it makes the decoder's input from the targets itself.
    """
    assert isinstance(model, EncoderDecoder)
    source, source_segments, decoder_input, targets = batch(model.config)
    more = {} if shifted_by_reference else {"decoder_input_ids": decoder_input}
    reference.zero_grad()
    model.zero_grad()
    expected = reference(input_ids=source, attention_mask=source_segments.long(), labels=targets, **more).loss
    logits = model(source, decoder_input, source_segments=source_segments)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert parity.relative(loss.detach(), expected.detach()) <= parity.RESULT
    expected.backward()
    loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.requires_grad}
    largest = max(float(gradient.norm()) for gradient in theirs.values())
    compared = 0
    for weight in FAMILIES[reference.config.model_type].weights(model.config):
        if weight.published in theirs:
            found = join(weight, [ours[name] for name in weight.ours], model.config)
            wanted = theirs[weight.published]
            if wanted.shape == model.embedding.weight.shape:  # the row of padding is not learned by `nn.Embedding`
                found, wanted = found[2:], wanted[2:]
            scale = wanted.norm().clamp(min=1e-3 * largest)
            error = float((found - wanted).norm() / scale)
            assert error <= parity.GRADIENT, f"{weight.published}: {error:.1e}"
            compared += 1
    assert compared == len(theirs)


def check_class_head(reference: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check_family` of a head for classes, which the reference reads where the source has its last end-of-text."""

    def inputs(config: ModelConfig) -> tuple[Tensor, ...]:
        source = parity.random_ids(config, ROWS, SOURCE, seed=7)
        source[:, -1] = reference.config.eos_token_id
        return source, parity.random_ids(config, ROWS, SOURCE, seed=8)

    monkeypatch.setattr(parity, "inputs", inputs)
    parity.check_family(reference, folder)


def check_search(reference: Any, model: Model, **settings: Any) -> list[list[int]]:
    """The texts of `trivium.generation` are those of `transformers`, for sources of several lengths in one batch.

    Texts end with an id that the model does choose: the one which its first text has in sixteenth place when it may not
    end. With `forced_bos_id` they are also forced to end.
    """
    source, source_segments, _, _ = batch(model.config)
    chosen = {"max_new_tokens": 64, "no_repeat_ngram_size": 3, **settings}
    common = {"attention_mask": source_segments.long(), "do_sample": False, "pad_token_id": 1}
    names = {"forced_bos_id": "forced_bos_token_id", "forced_eos_id": "forced_eos_token_id"}
    unforced = dict.fromkeys(names.values())
    endless = reference.generate(
        source, **common, **unforced, max_new_tokens=16, no_repeat_ngram_size=3, eos_token_id=None
    )
    end = int(endless[0, -1])
    chosen |= {"forced_eos_id": end} if "forced_bos_id" in chosen else {}
    theirs = {**unforced, **{names.get(key, key): value for key, value in chosen.items()}}
    expected = reference.generate(source, **common, **theirs, eos_token_id=end)[:, 1:].tolist()
    sources = [ids[real > 0].tolist() for ids, real in zip(source, source_segments, strict=True)]
    found = generate(model, small_tokenizer(), sources, GenerationSettings(**chosen), eos_ids=[end])
    for text, ids in zip(found, expected, strict=True):
        length = ids.index(end) + 1 if end in ids else len(ids)
        assert text.tokens == ids[:length]
    return [text.tokens for text in found]


class Uncached:
    """A model of `transformers` that generates without a cache.

    Theirs is made for as many layers as the encoder has, and fails where the decoder has more.
    """

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def generate(self, *given: Any, **settings: Any) -> Tensor:
        """Token ids."""
        return self.reference.generate(*given, **{**settings, "use_cache": False})  # type: ignore[no-any-return]


def uncached(reference: Any) -> Any:
    """The model itself where its cache works, else without."""
    config = reference.config
    decoder_layers = config.num_decoder_layers if hasattr(config, "num_decoder_layers") else config.decoder_layers
    return Uncached(reference) if decoder_layers > config.num_hidden_layers else reference


# Searches whose texts are compared: settings of ours, which are theirs too.
SEARCHES: tuple[dict[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 4, "length_penalty": 0.6},
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 2.0, "forced_bos_id": 11},
)


@lru_cache(maxsize=1)
@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of 320 entries, learned from a module of the standard library."""
    return Tokenizer.train(texts=[inspect.getsource(textwrap)], vocab_size=320)


def shaken_bias(reference: Any, seed: int = 3) -> Any:
    """The bias of BART's token scores moved away from 0, where the model has one."""
    bias = getattr(reference, "final_logits_bias", None)
    if bias is not None:
        bias.normal_(generator=torch.Generator().manual_seed(seed))
    return reference
