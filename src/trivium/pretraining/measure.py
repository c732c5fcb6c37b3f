"""What a finished pretraining run says of its model: held-out bits per byte beside two baselines, samples, facts.

The held-out measure scores every token of every held-out document once, by rolling windows, in fp32
(`generation/scoring.py`). The baselines are computed on exactly the same bytes: the entropy of the same tokens without
context, and `xz -9e`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from trivium.data.prepare import Prepared, held_out_texts
from trivium.data.settings import DataSettings
from trivium.generation.generate import generate
from trivium.generation.scoring import score_documents, sum_scores
from trivium.generation.settings import GenerationSettings
from trivium.metrics.compression import unigram_bits_per_byte, xz_bits_per_byte
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters, training_flops_per_token
from trivium.models.decoder import Decoder
from trivium.pretraining.recipe import PretrainRecipe
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer

# The final measure stops after the held-out document that reaches so many characters.
MEASURED_CHARACTERS = 4 << 20


def held_out_measure(model: Decoder, tokenizer: Tokenizer, data: DataSettings, progress: Progress) -> dict[str, Any]:
    """{"held_out": perplexities, "baselines": bits per byte, "tokenizer_facts"}; empty where nothing is held out."""
    documents = _up_to(held_out_texts(data), MEASURED_CHARACTERS)
    if not documents:
        return {}
    total = sum_scores(score_documents(model, tokenizer, documents, progress=progress))
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


def draw_samples(
    model: Decoder, tokenizer: Tokenizer, recipe: PretrainRecipe, progress: Progress
) -> list[dict[str, Any]]:
    """What the model writes after each of the recipe's prompts."""
    if not recipe.sample_prompts:
        return []
    settings = GenerationSettings(
        max_new_tokens=min(recipe.sample_tokens, recipe.model.max_positions // 2),
        temperature=0.8,
        top_p=0.95,
        seed=recipe.seed,
    )
    shown = settings.model_dump(include={"max_new_tokens", "temperature", "top_p", "seed"})
    results = generate(model, tokenizer, recipe.sample_prompts, settings, progress=progress)
    return [
        {"prompt": prompt, "text": result.text, "settings": shown}
        for prompt, result in zip(recipe.sample_prompts, results, strict=True)
    ]


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """The model in numbers."""
    return {
        "kind": config.kind,
        "parameters": num_parameters(config),
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "context": config.max_positions,
        "vocab_size": config.vocab_size,
        "training_flops_per_token": training_flops_per_token(config, config.max_positions),
    }


def data_facts(data: DataSettings, prepared: Prepared) -> dict[str, Any]:
    """The text in numbers."""
    shards = [shards for shards, _ in prepared.train]
    held_out = prepared.held_out
    return {
        "sources": [source.path for source in data.train],
        "documents": sum(s.num_documents for s in shards),
        "tokens": sum(s.num_tokens for s in shards),
        "bytes": sum(s.num_bytes for s in shards),
        "held_out_documents": held_out.num_documents if held_out else 0,
        "held_out_tokens": held_out.num_tokens if held_out else 0,
        "held_out_bytes": held_out.num_bytes if held_out else 0,
    }
