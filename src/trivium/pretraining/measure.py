"""What a finished pretraining run says of its model: how well it does on held-out text, beside baselines, and facts.

What is measured follows the kind of model, since the same word must not mean two things:
- a decoder has a probability for every text: bits per byte and perplexity, by rolling windows, in fp32
  (`generation/scoring.py`), beside the entropy of the same tokens without context, and `xz -9e`, on the same bytes;
- an encoder has none, as it sees both sides of what it predicts: the loss per masked token and how many it gets right
  (never called perplexity), beside a guesser that only knows how often each token occurs;
- an encoder-decoder's targets depend on its sources: the loss per target token, and, for pairs, the score of what it
  writes, greedily and by beam search.
What is masked or cut out of held-out text is the same in every measure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from trivium.data.objectives_settings import PairsSettings
from trivium.data.pairs import PairShards
from trivium.data.prepare import held_out_texts
from trivium.data.settings import DataSettings
from trivium.data.shards import Shards
from trivium.generation.scoring import score_documents, sum_scores
from trivium.metrics.compression import unigram_bits_per_byte, xz_bits_per_byte
from trivium.models.build import Model
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.pretraining.generated import held_out_pairs, scores, written
from trivium.pretraining.material import Material
from trivium.progress import Progress
from trivium.runtime import Runtime
from trivium.training.evaluate import Evaluation, evaluate_loss
from trivium.training.token_objective import TokenObjective

# The final measure stops after the held-out document that reaches so many characters, or (by targets) so many ids.
MEASURED_CHARACTERS = 4 << 20


def held_out_measure(model: Model, material: Material, runtime: Runtime, progress: Progress) -> dict[str, Any]:
    """{"held_out": figures, "baselines", "tokenizer_facts"}; empty where nothing is held out. One process does it."""
    if isinstance(model, Decoder):
        return _of_decoder(model, material, progress)
    runtime = replace(runtime, rank=0, world_size=1, precision="fp32")
    rows, shards = material.evaluation_rows(runtime, all_rows=True), material.held_out
    if rows is None or shards is None:
        return {}
    progress.note("measuring held-out text")
    found = evaluate_loss(model, TokenObjective(accuracy=True), rows, runtime)
    facts = {"num_targets": found.targets, "num_bytes": shards.num_bytes, "num_documents": shards.num_documents}
    if isinstance(model, EncoderDecoder):
        figures = _figures("target", found)
        return {
            "held_out": {**figures, **final_scores(model, material, progress), **facts},
            **_tokenizer_facts(material),
        }
    assert isinstance(shards, Shards)
    return {
        "held_out": {**_figures("masked", found), **facts},
        "baselines": guesses(shards),
        **_tokenizer_facts(material),
    }


def _of_decoder(model: Decoder, material: Material, progress: Progress) -> dict[str, Any]:
    """Every token of every held-out document scored once."""
    tokenizer = material.tokenizer
    documents = _up_to(held_out_texts(material.recipe.data), MEASURED_CHARACTERS)
    if not documents:
        return {}
    scored = score_documents(model, tokenizer, documents, progress=progress, description="measuring held-out text")
    total = sum_scores(scored)
    counts = Counter(token for ids in tokenizer.encode_batch(documents) for token in ids)
    return {
        "held_out": {
            **total.perplexity().to_json(),
            "num_bytes": total.num_bytes,
            "num_documents": len(documents),
        },
        "baselines": {
            "unigram_bits_per_byte": unigram_bits_per_byte(counts.values(), total.num_bytes),
            "xz_bits_per_byte": xz_bits_per_byte("".join(documents).encode()),
        },
        "tokenizer_facts": {
            "vocab_size": tokenizer.vocab_size,
            "bytes_per_token": total.num_bytes / total.num_tokens,
        },
    }


def _figures(what: str, found: Evaluation) -> dict[str, float]:
    """Mean loss in nats and share of right answers, named after what is predicted."""
    accuracy = found.scalars.get("correct", 0.0) / found.targets if found.targets else math.nan
    return {f"{what}_loss": found.loss, f"{what}_accuracy": accuracy}


def guesses(shards: Shards) -> dict[str, float]:
    """How a guesser fares that knows how often each token occurs in the held-out text, and nothing of its context."""
    ids = shards.tokens(0, min(shards.num_tokens, MEASURED_CHARACTERS))
    counts = np.bincount(ids[ids != shards.index.eos_id])
    shares = counts[counts > 0] / counts.sum()
    return {"unigram_loss": float(-(shares * np.log(shares)).sum()), "commonest_token_accuracy": float(shares.max())}


def final_scores(model: EncoderDecoder, material: Material, progress: Progress) -> dict[str, float]:
    """{"bleu_greedy", "bleu_beam"} (or those of ROUGE) of held-out pairs; empty where the recipe asks for none."""
    objective = material.recipe.objective
    if not isinstance(objective, PairsSettings) or objective.generate_and_score == "none":
        return {}
    pairs = held_out_pairs(material, objective.validation_pairs_to_generate)
    assert pairs is not None
    found = {}
    for way, num_beams, words in (("greedy", 1, "greedy"), ("beam", objective.num_beams, "beam search")):
        what = f"writing held-out targets ({words})"
        texts = written(model, material, pairs, num_beams=num_beams, description=what, progress=progress)
        for name, value in scores(objective.generate_and_score, texts, pairs.targets).items():
            found[f"{name}_{way}"] = value
    return found


def _tokenizer_facts(material: Material) -> dict[str, Any]:
    shards = material.held_out
    assert shards is not None
    marks = shards.num_documents * (2 if isinstance(shards, PairShards) else 1)
    facts = {
        "vocab_size": material.tokenizer.vocab_size,
        "bytes_per_token": shards.num_bytes / max(1, shards.num_tokens - marks),
    }
    return {"tokenizer_facts": facts}


def _up_to(documents: Iterator[str], characters: int) -> list[str]:
    """The first documents, ending with the one that reaches `characters`."""
    taken: list[str] = []
    size = 0
    for text in documents:
        if text and not text.isspace():  # as the shards do
            taken.append(text)
            size += len(text)
        if size >= characters:
            break
    return taken


def data_facts(data: DataSettings, material: Material) -> dict[str, Any]:
    """The text in numbers; of pairs, a document is a pair."""
    shards = [shards for shards, _ in material.prepared.train]
    held_out = material.held_out
    return {
        "sources": [source.path for source in data.train],
        "documents": sum(s.num_documents for s in shards),
        "tokens": sum(s.num_tokens for s in shards),
        "bytes": sum(s.num_bytes for s in shards),
        "held_out_documents": held_out.num_documents if held_out else 0,
        "held_out_tokens": held_out.num_tokens if held_out else 0,
        "held_out_bytes": held_out.num_bytes if held_out else 0,
    }
