"""What a finished model writes, for people to read: continuations, filled blanks, or targets of sources.

Each sample is {"prompt", "text"} and, where it comes from held-out data, {"truth"}: of a decoder the continuation of
the recipe's prompts; of an encoder the recipe's texts and held-out ones with their masks filled in; of an
encoder-decoder what it writes for the recipe's sources and for held-out ones.
"""

from __future__ import annotations

from typing import Any

import torch

from trivium.data.examples import ExampleRows, TextPieces
from trivium.data.marks import Marks
from trivium.data.objectives_settings import PairsSettings
from trivium.data.order import draw_of, key_of
from trivium.data.pairs import PairShards
from trivium.data.sources import rows_for
from trivium.data.tasks import MIN_TOKENS, Example, build_task
from trivium.generation.generate import generate
from trivium.generation.mode import evaluating
from trivium.generation.prompts import encode_with_blanks
from trivium.generation.settings import GenerationSettings
from trivium.models.build import Model
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.pretraining.material import Material, spread
from trivium.progress import Progress

# So many held-out texts are shown, of so many positions at most.
HELD_OUT_SAMPLES = 4
SAMPLE_POSITIONS = 64
# What the progress of a run calls it.
SAMPLING = "writing samples"

Sample = dict[str, Any]


def draw_samples(model: Model, material: Material, progress: Progress) -> list[Sample]:
    """The samples of a run, of whatever kind its model is."""
    if isinstance(model, Decoder):
        return continuations(model, material, progress)
    if isinstance(model, Encoder):
        return filled_masks(model, material)
    return targets_of_sources(model, material, progress)


def continuations(model: Decoder, material: Material, progress: Progress) -> list[Sample]:
    """What the model writes after each of the recipe's prompts."""
    recipe = material.recipe
    if not recipe.sample_prompts:
        return []
    settings = GenerationSettings(
        max_new_tokens=min(recipe.sample_tokens, recipe.model.max_positions // 2),
        temperature=0.8,
        top_p=0.95,
        seed=recipe.seed,
    )
    shown = settings.model_dump(include={"max_new_tokens", "temperature", "top_p", "seed"})
    results = generate(
        model, material.tokenizer, recipe.sample_prompts, settings, progress=progress, description=SAMPLING
    )
    return [
        {"prompt": prompt, "text": result.text, "settings": shown}
        for prompt, result in zip(recipe.sample_prompts, results, strict=True)
    ]


def filled_masks(model: Encoder, material: Material) -> list[Sample]:
    """Each mask replaced by the likeliest token, all at once."""
    marks = material.marks
    assert marks is not None
    samples = []
    for text in material.recipe.sample_prompts:
        ids, _ = material.tokenizer.wrap(encode_with_blanks(material.tokenizer, text))
        samples.append(_filled(model, material, marks, ids))
    for example in held_out_examples(material):
        truth = [int(old if new < 0 else new) for old, new in zip(example.ids, example.targets, strict=True)]
        sample = _filled(model, material, marks, example.ids.tolist())
        samples.append({**sample, "truth": _shown(material, marks, truth)})
    return samples


@torch.inference_mode()
def _filled(model: Encoder, material: Material, marks: Marks, ids: list[int]) -> Sample:
    row = torch.tensor([ids], device=model.device)
    with evaluating(model):
        best = model(row)[0, :, : material.tokenizer.vocab_size].argmax(-1).tolist()
    filled = [new if old == marks.mask_id else old for old, new in zip(ids, best, strict=True)]
    return {"prompt": _shown(material, marks, ids), "text": _shown(material, marks, filled)}


def _shown(material: Material, marks: Marks, ids: list[int]) -> str:
    """The text without the marks around it."""
    return material.tokenizer.decode(ids[len(marks.before) : len(ids) - len(marks.after)])


def targets_of_sources(model: EncoderDecoder, material: Material, progress: Progress) -> list[Sample]:
    """What the model writes, the likeliest token after another; sentinels are shown, the marks of a text are not."""
    recipe, tokenizer, marks = material.recipe, material.tokenizer, material.marks
    assert marks is not None
    hidden = {*marks.before, *marks.after}

    def shown(ids: list[int]) -> str:
        return tokenizer.decode([token for token in ids if token not in hidden])

    examples = held_out_examples(material)
    sources = [example.source.tolist() for example in examples if example.source is not None]
    settings = GenerationSettings(max_new_tokens=recipe.sample_tokens, temperature=0.0)
    prompts: list[str | list[int]] = [*recipe.sample_prompts, *sources]
    results = generate(model, tokenizer, prompts, settings, progress=progress, description=SAMPLING)
    samples: list[Sample] = [
        {"prompt": prompt if isinstance(prompt, str) else shown(prompt), "text": shown(result.tokens)}
        for prompt, result in zip(prompts, results, strict=True)
    ]
    for sample, example in zip(samples[len(recipe.sample_prompts) :], examples, strict=True):
        sample["truth"] = shown(example.targets.tolist())
    return samples


def held_out_examples(material: Material) -> list[Example]:
    """A few held-out texts or pairs as tasks, short enough to be read."""
    recipe, shards, marks = material.recipe, material.held_out, material.marks
    if shards is None or marks is None:
        return []
    seed, length = key_of("held-out samples"), recipe.data.sequence_length
    if isinstance(recipe.objective, PairsSettings) or isinstance(shards, PairShards):
        rows = rows_for(shards, recipe.data, recipe.objective, recipe.model.kind, marks, seed)
    else:
        task = build_task(recipe.objective, marks)
        length = max(min(length, SAMPLE_POSITIONS), task.room(MIN_TOKENS).most)
        rows = ExampleRows(TextPieces(shards, task, length), length, seed)
    assert isinstance(rows, ExampleRows)
    pieces = rows.pieces
    return [pieces.example(number, draw_of(seed, number)) for number in spread(HELD_OUT_SAMPLES, len(pieces.rooms))]
