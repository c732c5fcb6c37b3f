"""One random model of `transformers` against ours: there, back, and in use.

`check_family(reference, folder)` saves the reference as `transformers` does, opens it with ours and compares, in fp32:
the head's result (largest difference 1e-5 of the largest value), the gradients of a loss by published tensor (1e-4),
what padding changes (nothing), and, saved by us, the bytes of every tensor and the result of `transformers` on them.
`check_greedy` compares 64 greedy tokens, with our cache and without. `fails` is for broken controls.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.checkpoints.directory import load_weights, save_weights
from trivium.checkpoints.layouts import join
from trivium.families import FAMILIES
from trivium.models.build import Model, build_model
from trivium.models.cache import Cache
from trivium.models.config import ModelConfig
from trivium.models.encoder_decoder import EncoderDecoder

ROWS, LENGTH, SOURCE_LENGTH = 3, 23, 19
PADS = (0, 1, 7, 64)
RESULT, GRADIENT = 1e-5, 1e-4


def shaken(reference: Any, seed: int = 0) -> Any:
    """The model with biases and norms moved away from 0 and 1 and matrices enlarged, so that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(noise, alpha=0.2)
            elif float(parameter.std()) < 0.1:
                parameter.add_(noise, alpha=0.1)
    return reference.eval()


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def random_ids(config: ModelConfig, *shape: int, seed: int = 0) -> Tensor:
    """Ids that are no special ones by any convention (those below 5)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(5, config.vocab_size - 1), config.vocab_size, shape, generator=generator)


def inputs(config: ModelConfig) -> tuple[Tensor, ...]:
    """(ids,), or (source, decoder input)."""
    ids = random_ids(config, ROWS, min(LENGTH, config.max_positions))
    if config.kind == "encoder-decoder":
        return random_ids(config, ROWS, min(SOURCE_LENGTH, config.max_positions), seed=1), ids
    return (ids,)


def reference_result(reference: Any, given: tuple[Tensor, ...], **more: Any) -> Tensor:
    """What the reference's head says, in our shapes."""
    names = ("input_ids", "decoder_input_ids")[: len(given)]
    output = reference(**dict(zip(names, given, strict=True)), **more, use_cache=False) if len(given) == 2 else None
    output = reference(given[0], **more) if output is None else output
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), -1)
    if "logits" in output:
        return output.logits  # type: ignore[no-any-return]
    return output.last_hidden_state  # type: ignore[no-any-return]


def opened(reference: Any, folder: Path) -> tuple[Model, ModelConfig]:
    """The reference saved by `transformers` and opened by us."""
    reference.save_pretrained(folder)
    return load_weights(folder)


def check_family(reference: Any, folder: Path, *, padding: bool = True) -> tuple[Model, ModelConfig]:
    """All comparisons but generation; returns our model."""
    shaken(reference)
    model, config = opened(reference, folder / "theirs")
    check_result(reference, model)
    check_gradients(reference, model, folder / "theirs")
    if padding:
        check_padding(model)
    check_way_back(reference, model, config, folder)
    return model, config


@torch.no_grad()
def check_result(reference: Any, model: Model) -> None:
    """The head's result is the reference's."""
    given = inputs(model.config)
    expected = reference_result(reference, given)
    found = model(*given)
    found = found[:, None] if model.config.head == "scalar" else found
    assert relative(found, expected) <= RESULT, f"result differs by {relative(found, expected):.2e}"


def check_gradients(reference: Any, model: Model, folder: Path) -> None:
    """The gradients of a loss that weighs every output differently, tensor by published tensor."""
    given = inputs(model.config)
    expected = reference_result(reference, given)
    found = model(*given)
    found = found[:, None] if model.config.head == "scalar" else found
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for result, owner in ((expected, reference), (found, model)):
        owner.zero_grad()
        loss = (result.log_softmax(-1) if result.shape[-1] > 2 else result) * direction
        loss.sum().backward()
    learned = ((name, parameter) for name, parameter in reference.named_parameters() if parameter.requires_grad)
    theirs = {name: _gradient(parameter) for name, parameter in learned}
    ours = {name: _gradient(parameter) for name, parameter in model.named_parameters()}
    family = FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
    wrong, compared = [], 0
    for weight in family.weights(model.config):
        name = weight.published
        name = name if name in theirs else name.removeprefix(family.base_prefix)
        if name not in theirs:
            continue  # a buffer there, such as final_logits_bias
        mine = join(weight, [ours[part] for part in weight.ours], model.config)
        # The gradient of a key's bias is 0 but for rounding (softmax does not see it), which is not compared.
        scale = theirs[name].norm().clamp(min=1e-3 * max(float(g.norm()) for g in theirs.values()))
        error = float((mine - theirs[name]).norm() / scale)
        compared += 1
        if not error <= GRADIENT:
            wrong.append(f"{name}: {error:.1e}")
    assert compared >= len(theirs), f"only {compared} of {len(theirs)} gradients were compared"
    assert not wrong, f"gradients differ: {wrong}"


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


@torch.no_grad()
def check_padding(model: Model) -> None:
    """Padding on either side (segment 0) changes no result beyond rounding."""
    config = model.config
    given = inputs(config)
    expected = model(*given)
    room = config.max_positions - given[0].shape[1] if config.positions == "learned" else max(PADS)
    for pad in (pad for pad in PADS if pad <= room):
        for left in (True, False):
            padded = [_padded(ids, pad, left) for ids in given]
            if isinstance(model, EncoderDecoder):
                (source, source_segments), (ids, segments) = padded
                found = model(source, ids, source_segments=source_segments, segments=segments)
            else:
                ((ids, segments),) = padded
                found = model(ids, segments=segments)
            if found.ndim == 3:
                found = found[:, pad:] if left else found[:, : given[-1].shape[1]]
            assert found.isfinite().all()
            error = relative(found, expected)
            assert error <= RESULT, f"{pad} on the {'left' if left else 'right'}: {error:.1e}"


def _padded(ids_BT: Tensor, pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and segments with `pad` positions more."""
    sides = (pad, 0) if left else (0, pad)
    segments = F.pad(torch.ones_like(ids_BT, dtype=torch.int32), sides)
    return F.pad(ids_BT, sides, value=3), segments


@torch.no_grad()
def check_way_back(reference: Any, model: Model, config: ModelConfig, folder: Path) -> None:
    """Saved by us: the bytes of every tensor, and what `transformers` computes from them."""
    theirs, ours = folder / "theirs", folder / "ours"
    family = json.loads((theirs / "config.json").read_text())["model_type"]
    save_weights(ours, model, config, family=family)
    before, after = load_file(theirs / "model.safetensors"), load_file(ours / "model.safetensors")
    differing = [name for name in after if name not in before or not _same_bytes(before[name], after[name])]
    copies = FAMILIES[family].copies(config)
    lost = [name for name in before if name not in after and name not in copies]
    lost = [name for name in lost if not FAMILIES[family].is_redundant(name)]
    assert not differing and not lost, f"differing: {differing}; lost: {lost}"
    again, info = type(reference).from_pretrained(
        ours, output_loading_info=True, attn_implementation=reference.config._attn_implementation
    )
    assert not info["mismatched_keys"] and not info["unexpected_keys"], info
    again.config.pad_token_id = reference.config.pad_token_id  # token ids are the tokenizer's to say
    again.config.eos_token_id = reference.config.eos_token_id
    given = inputs(config)
    found, expected = reference_result(again.eval(), given), reference_result(reference, given)
    assert relative(found, expected) <= RESULT


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@torch.no_grad()
def check_greedy(reference: Any, model: Model, tokens: int = 64) -> None:
    """The likeliest tokens, one after the other: by `transformers`, by our cache, and by recomputing everything.

    No pair of tokens may come twice, or small random models repeat one token for ever, whatever is wrong with them.
    """
    config = model.config
    source = random_ids(config, ROWS, min(9, config.max_positions))
    begin = source
    if isinstance(model, EncoderDecoder):
        begin = torch.full((ROWS, 1), config.decoder_start_id)
    if config.positions == "learned":
        tokens = min(tokens, config.max_positions - begin.shape[1])
    theirs = reference.generate(
        source,
        attention_mask=torch.ones_like(source),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        no_repeat_ngram_size=2,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
        **({"forced_bos_token_id": None, "forced_eos_token_id": None} if begin is not source else {}),
    )[:, begin.shape[1] :]
    cached = _greedy(model, source, begin, tokens, cached=True)
    plain = _greedy(model, source, begin, tokens, cached=False)
    assert len(set(theirs[0].tolist())) >= min(8, tokens), "the text is too monotonous to prove anything"
    assert theirs.tolist() == cached.tolist(), "cached tokens differ from the reference's"
    assert theirs.tolist() == plain.tolist(), "tokens without a cache differ from the reference's"


def _greedy(model: Model, source: Tensor, begin: Tensor, tokens: int, *, cached: bool) -> Tensor:
    step: Callable[[Tensor, Cache | None], tuple[Tensor, Cache | None]]
    if isinstance(model, EncoderDecoder):
        memory = model.memory(model.encode(source))
        step = lambda ids, cache: model.hidden(ids, memory=memory, cache=cache)  # noqa: E731
    else:
        step = lambda ids, cache: model.hidden(ids, cache=cache)  # type: ignore[call-arg,return-value]  # noqa: E731
    ids, fresh = begin, begin
    cache = Cache.empty(model.config, len(begin), 8, "cpu", torch.float32) if cached else None
    for _ in range(tokens):
        hidden, cache = step(fresh if cached else ids, cache)
        fresh = without_repeats(model.logits(hidden[:, -1]), ids).argmax(-1, keepdim=True)
        ids = torch.cat((ids, fresh), 1)
    return ids[:, begin.shape[1] :]


def without_repeats(scores_BV: Tensor, ids_BT: Tensor) -> Tensor:
    """Scores in which no token may follow that has followed the last one before."""
    for row, ids in enumerate(ids_BT.tolist()):
        followers = [after for before, after in itertools.pairwise(ids) if before == ids[-1]]
        scores_BV[row, followers] = float("-inf")
    return scores_BV


def rebuilt(model: Model, **changes: Any) -> Model:
    """The same weights under another config, for broken controls; those that it has no place for are left out."""
    other = build_model(model.config.changed(**changes))
    other.load_state_dict(model.state_dict(), strict=False)
    return other.eval()


def fails(check: Callable[[], Any]) -> bool:
    """Whether a check finds something wrong (for broken controls)."""
    try:
        check()
    except AssertionError:
        return True
    return False
