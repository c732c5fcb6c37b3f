"""An adapter's tensors as `peft` names and lays them out, there and back.

Our names are those of `peft/apply.adapter_state`. Theirs follow from the family's table of tensors: the module that a
published matrix belongs to, and what of it is stored.

    lora, rslora, dora   base_model.model.<module>.lora_A.weight (r, in), .lora_B.weight (out, r), and of dora
                         .lora_magnitude_vector (out,)
    ia3                  base_model.model.<module>.ia3_l: (out, 1) for outputs, (1, in) for inputs
    prompt, p_tuning     prompt_embeddings (P, D)
    prefix               prompt_embeddings (P, 2 L K N), keys and values of each layer in turn
    trained in full      base_model.model.<module>.weight as in the family's file (`modules_to_save`)

Where a family stores several of our layers as one (GPT-2's `c_attn`, BLOOM's `query_key_value`), products of several
become one of their ranks together: y_i = s B_i A_i x is s [B_1 0; 0 B_2] [A_1; A_2] x, exactly; where all share one A,
as in an adapter that was read, it stays one of rank r. Read back, each layer gets the whole A and its rows of B.

Invariants the tests check: `peft` computes equal results from what is written, and ours are equal on what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from trivium.checkpoints.adapter_places import (
    Place,
    expect,
    linear_places,
    module_of,
    number,
    published_weights,
    shortest_names,
)
from trivium.checkpoints.layouts import join, split
from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.reading import shown
from trivium.models.config import ModelConfig
from trivium.peft.lora import rank_and_alpha, scale_of
from trivium.peft.settings import LowRankSettings, RsLoraSettings

WRAPPED, PROMPTED = "base_model.model.", "base_model."
"""What stands before a module's name: where layers are wrapped, and where vectors stand before the text."""
PROMPT_TENSOR = "prompt_embeddings"
Tensors = dict[str, Tensor]


# ------------------------------------------------------------------------------------------------- low-rank products


def low_rank_to_peft(
    settings: LowRankSettings,
    state: Mapping[str, Tensor],
    family: Family,
    config: ModelConfig,
    lengths: Callable[[str], Tensor],
) -> tuple[dict[str, Any], Tensors]:
    """(what adapter_config.json says of it, its tensors); `lengths` gives |W| of each row of a layer of ours."""
    tensors: Tensors = {}
    sizes: dict[str, tuple[int, float]] = {}
    places = [
        place
        for place in linear_places(family, config).values()
        if any(f"{name}.lora_a" in state for name in place.ours)
    ]
    for place in places:
        a, b, size = _one_product(settings, state, place, config)
        stem = f"{WRAPPED}{place.published}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a, b
        sizes[place.published] = size
        if settings.method == "dora":
            parts = [state.get(f"{name}.magnitude") for name in place.ours]
            known = [lengths(name) if part is None else part for name, part in zip(place.ours, parts, strict=True)]
            tensors[f"{stem}.lora_magnitude_vector"] = place.joined(known, config)
    rank, alpha = next(iter(sizes.values()))
    values = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": settings.dropout,
        "rank_pattern": {name: size[0] for name, size in sizes.items() if size[0] != rank},
        "alpha_pattern": {name: _plain(size[1]) for name, size in sizes.items() if size[1] != alpha},
        "target_modules": shortest_names(sizes, family, config),
        "use_rslora": isinstance(settings, RsLoraSettings),
        "use_dora": settings.method == "dora",
        "fan_in_fan_out": any(place.transposed for place in places),
        "bias": "none",
        "init_lora_weights": True,
    }
    return values, tensors


def _one_product(
    settings: LowRankSettings, state: Mapping[str, Tensor], place: Place, config: ModelConfig
) -> tuple[Tensor, Tensor, tuple[int, float]]:
    """(A, B, (rank, alpha)) of the products of all our layers in one published layer."""
    there = [name for name in place.ours if f"{name}.lora_a" in state]
    first = there[0]
    scales = [scale_of(settings, name) for name in there]
    products = [state[f"{name}.lora_a"] for name in there]
    shared = all(torch.equal(a, products[0]) for a in products) and len(set(scales)) == 1
    rank = products[0].shape[0] if shared else sum(a.shape[0] for a in products)
    parts, at = [], 0
    for name, outputs in zip(place.ours, place.outputs, strict=True):
        rows = torch.zeros(outputs, rank)
        if name in there:
            b = state[f"{name}.lora_b"].float().cpu()
            factor = scale_of(settings, name) / scales[0]
            rows[:, at : at + b.shape[1]] = b if factor == 1 else b * factor
            at += 0 if shared else b.shape[1]
        parts.append(rows)
    if shared:
        size = rank_and_alpha(settings, first)
    else:
        size = (rank, scales[0] * (rank**0.5 if isinstance(settings, RsLoraSettings) else rank))
    a = products[0] if shared else torch.cat(products)
    return a, place.joined(parts, config), size


def low_rank_from_peft(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], family: Family, config: ModelConfig, where: str
) -> tuple[dict[str, Any], Tensors]:
    """(fields of our settings, our tensors); UserError for what does not fit the model or is not known here."""
    places = linear_places(family, config)
    state: Tensors = {}
    rank, alpha = number(values, "r", where), number(values, "lora_alpha", where)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    wanted = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if values.get("use_dora") else set())
    for name, parts in _bymodule_of(tensors, wanted, where).items():
        place = _known(places, name, where)
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
        stated = int(_by_pattern(values, "rank_pattern", name, rank, where))
        expect(a, (stated, place.inputs), f"{name}.lora_A.weight", where)
        expect(b, (sum(place.outputs), stated), f"{name}.lora_B.weight", where)
        lengths = parts.get("lora_magnitude_vector")
        if lengths is not None:
            expect(lengths, (sum(place.outputs),), f"{name}.lora_magnitude_vector", where)
        each_lengths = [None] * len(place.ours) if lengths is None else place.parted(lengths, config)
        for ours, rows, some in zip(place.ours, place.parted(b, config), each_lengths, strict=True):
            state |= {f"{ours}.lora_a": a, f"{ours}.lora_b": rows}
            state |= {} if some is None else {f"{ours}.magnitude": some}
            ranks[ours] = stated
            alphas[ours] = float(_by_pattern(values, "alpha_pattern", name, alpha, where))
    if not ranks:
        raise UserError(f"{where} holds no product")
    fields = {
        "method": "dora" if values.get("use_dora") else "rslora" if values.get("use_rslora") else "lora",
        "rank": int(rank),
        "alpha": float(alpha),
        "dropout": float(values.get("lora_dropout") or 0.0),
        "targets": list(ranks),
        "ranks": {name: each for name, each in ranks.items() if each != rank},
        "alphas": {name: each for name, each in alphas.items() if each != alpha},
    }
    if values.get("use_dora") and values.get("use_rslora"):
        raise UserError(f"{where}: use_dora together with use_rslora is not known here")
    return fields, state


# ------------------------------------------------------------------------------------------------------------ factors


def factors_to_peft(
    state: Mapping[str, Tensor], inputs: Iterable[str], family: Family, config: ModelConfig
) -> tuple[dict[str, Any], Tensors]:
    """(what adapter_config.json says, the tensors) of (IA)^3; `inputs`: our layers whose inputs are scaled."""
    tensors: Tensors = {}
    of_inputs, forward, transposed = set(inputs), [], False
    for place in linear_places(family, config).values():
        there = [name for name in place.ours if f"{name}.factors" in state]
        if not there:
            continue
        key = f"{WRAPPED}{place.published}.ia3_l"
        found = {name: state[f"{name}.factors"].cpu() for name in there}
        sides = {name in of_inputs for name in there}
        if sides == {False}:
            known = [
                found[name] if name in found else torch.ones(outputs)
                for name, outputs in zip(place.ours, place.outputs, strict=True)
            ]
            tensors[key] = place.joined(known, config)[:, None].contiguous()
        elif sides == {True} and all(
            torch.equal(found.get(name, torch.empty(0)), found[there[0]]) for name in place.ours
        ):
            tensors[key] = found[there[0]][None]
            forward.append(place.published)
        else:
            raise UserError(f"{there[0]}: {place.published} is one layer in {family.model_type} files: scale it as one")
        transposed |= place.transposed
    names = [key.removeprefix(WRAPPED).removesuffix(".ia3_l") for key in tensors]
    targets, forward_names = shortest_names(names, family, config), shortest_names(forward, family, config)
    if not set(forward_names) <= set(targets):
        targets, forward_names = names, forward
    values = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": forward_names,
        "fan_in_fan_out": transposed,
        "init_ia3_weights": True,
    }
    return values, tensors


def factors_from_peft(
    tensors: Mapping[str, Tensor], family: Family, config: ModelConfig, where: str
) -> tuple[dict[str, Any], Tensors]:
    """(fields of our settings, our tensors)."""
    places = linear_places(family, config)
    state: Tensors = {}
    sides: dict[str, list[str]] = {"scaled_outputs": [], "scaled_inputs": []}
    for name, parts in _bymodule_of(tensors, {"ia3_l"}, where).items():
        place, factors = _known(places, name, where), parts["ia3_l"]
        if factors.ndim == 2 and factors.shape[0] == 1:
            expect(factors, (1, place.inputs), f"{name}.ia3_l", where)
            each, side = [factors[0]] * len(place.ours), "scaled_inputs"
        else:
            expect(factors, (sum(place.outputs), 1), f"{name}.ia3_l", where)
            each, side = place.parted(factors[:, 0].contiguous(), config), "scaled_outputs"
        state |= {f"{ours}.factors": some for ours, some in zip(place.ours, each, strict=True)}
        sides[side] += place.ours
    if not sides["scaled_outputs"]:
        raise UserError(f"{where} scales the outputs of no layer, which is not known here")
    return {"method": "ia3", **sides}, state


# --------------------------------------------------------------------------------------------------- learned positions


def prefix_to_peft(state: Mapping[str, Tensor], stack: str) -> tuple[Tensor, int]:
    """((P, 2 n K N), n) from keys and values (L, P, K, N) of a decoder, or of an encoder-decoder's.

    Of the latter `peft` gives layer i the places 4 i and 4 i + 1 of 2 n, counted round: with n odd, and L or L + 1,
    each layer has its own, and the others hold zeros.
    """
    both = torch.stack((state[f"{stack}.prefix_keys"], state[f"{stack}.prefix_values"]), 1)  # (L, 2, P, K, N)
    layers = len(both)
    if stack == "decoder":
        n = layers + 1 - layers % 2
        placed = both.new_zeros(n, *both.shape[1:])
        placed[_turns(layers, n)] = both
        both, layers = placed, n
    return both.movedim(2, 0).flatten(1).contiguous(), layers


def prefix_from_peft(whole: Tensor, config: ModelConfig, where: str) -> Tensors:
    """The inverse."""
    each = 2 * config.kv_heads * config.head_width
    two = config.kind == "encoder-decoder"
    layers = whole.shape[1] // each if two else config.layers
    expect(whole, (whole.shape[0], max(layers, 1) * each), PROMPT_TENSOR, where)
    both = whole.view(-1, layers, 2, config.kv_heads, config.head_width).movedim(0, 2)
    stack = "decoder" if two else "stack"
    if two:
        both = both[_turns(config.decoder_layers, layers)]
    return {f"{stack}.prefix_keys": both[:, 0].contiguous(), f"{stack}.prefix_values": both[:, 1].contiguous()}


def _turns(layers: int, n: int) -> list[int]:
    """For each layer of an encoder-decoder's decoder, which of n pairs it is given."""
    return [2 * layer % n for layer in range(layers)]


# --------------------------------------------------------------------------------------------------- trained in full


def own_to_peft(
    trained: Mapping[str, Tensor], own: Callable[[str], Tensor], family: Family, config: ModelConfig, before: str
) -> tuple[list[str], Tensors]:
    """(modules_to_save, their tensors) for parameters of the model that were trained; `own` gives any other one.

    A module is saved as a whole.
    """
    weights = published_weights(family, config)
    modules = list(dict.fromkeys(module_of(w.published) for w in weights if any(name in trained for name in w.ours)))
    tensors = {
        f"{before}{weight.published}": join(
            weight, [(trained[name] if name in trained else own(name)).detach().cpu() for name in weight.ours], config
        )
        for weight in weights
        if module_of(weight.published) in modules
    }
    return modules, tensors


def own_from_peft(tensors: Mapping[str, Tensor], family: Family, config: ModelConfig, where: str) -> Tensors:
    """Our parameters from `tensors`, named as published; UserError for what is none of this model's."""
    weights = {weight.published: weight for weight in published_weights(family, config)}
    state: Tensors = {}
    for name, tensor in tensors.items():
        if name not in weights:
            raise UserError(f"{where}: {shown(name)} belongs to no layer of this {family.model_type} model")
        weight = weights[name]
        try:
            parts = split(weight, tensor, config)
        except RuntimeError:
            raise UserError(f"{where}: {shown(name)} is {tuple(tensor.shape)}, which does not fit the model") from None
        state |= dict(zip(weight.ours, parts, strict=True))
    return state


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _known(places: Mapping[str, Place], name: str, where: str) -> Place:
    if name not in places:
        example = next(iter(places))
        raise UserError(f"{where}: {shown(name)} is no linear layer of this model; its layers are like {example}")
    return places[name]


def _bymodule_of(tensors: Mapping[str, Tensor], wanted: set[str], where: str) -> dict[str, Tensors]:
    """Tensors by the module they are for and what they are of it; UserError where any is missing or unknown."""
    found: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        kind = next((kind for kind in wanted if key.endswith(f".{kind}")), None)
        if kind is None:
            raise UserError(
                f"{where}: {shown(key)} is unknown; of each layer there must be {', '.join(sorted(wanted))}"
            )
        found.setdefault(key.removesuffix(f".{kind}"), {})[kind] = tensor
    for name, parts in found.items():
        if missing := sorted(wanted - parts.keys()):
            raise UserError(f"{where}: {shown(name)}.{missing[0]} is missing")
    return found


def _by_pattern(values: Mapping[str, Any], key: str, name: str, otherwise: float, where: str) -> float:
    """What the first pattern that is the name, or its end from a dot on, gives; expressions are refused."""
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{where}: {key} must be an object")
    for pattern in patterns:
        plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if set(plain) & set("\\*+?[](){}|^$"):
            raise UserError(f"{where}: {key}: {shown(pattern)} is an expression: spell the modules' names out")
        if name == plain or name.endswith(f".{plain}"):
            return number(patterns, pattern, f"{where}: {key}")
    return otherwise
