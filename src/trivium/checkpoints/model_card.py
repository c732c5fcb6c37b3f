"""The README.md of a model directory: what the model is and how to use it, by its kind and its head."""

from __future__ import annotations

from typing import NamedTuple, get_args

from trivium.models.config import Head, Kind, ModelConfig
from trivium.models.counts import num_parameters
from trivium.runtime import Precision


class Use(NamedTuple):
    """How models of one kind and head are used."""

    what: str
    """What such a model is, after the article."""
    pipeline: str
    """The task as the Hugging Face hub calls it."""
    auto: str
    """The class of transformers that opens it."""
    shell: tuple[str, ...] = ()
    """Commands, to be run in the directory."""
    python: str = "bundle.model"
    """An expression of `bundle`."""


GENERATE = ('trivium generate . --prompt "Once upon a time"', "trivium metric perplexity . --file some.txt")
HEADS: dict[Head, Use] = {
    "classification": Use(
        "text classifier",
        "text-classification",
        "AutoModelForSequenceClassification",
        ('trivium classify . "What a day!"',),
        'bundle.classify("What a day!").label',
    ),
    "scalar": Use("model that gives a text one number", "text-classification", "AutoModelForSequenceClassification"),
    "token_classification": Use("token classifier", "token-classification", "AutoModelForTokenClassification"),
    "span": Use("model that finds an answer in a text", "question-answering", "AutoModelForQuestionAnswering"),
    "none": Use("model without a head", "feature-extraction", "AutoModel"),
}
LANGUAGE_MODELS: dict[Kind, Use] = {
    "decoder": Use(
        "causal language model",
        "text-generation",
        "AutoModelForCausalLM",
        GENERATE,
        'bundle.generate("Once upon a time").text',
    ),
    "encoder": Use(
        "masked language model",
        "fill-mask",
        "AutoModelForMaskedLM",
        ('trivium fill-mask . "The teacher {mask} the student."',),
        'bundle.fill_mask("The teacher {mask} the student.")',
    ),
    "encoder-decoder": Use(
        "sequence-to-sequence model",
        "text2text-generation",
        "AutoModelForSeq2SeqLM",
        ('trivium seq2seq . "A text to rewrite."',),
        'bundle.seq2seq("A text to rewrite.").text',
    ),
}
EMBEDDER = Use(
    "text encoder",
    "feature-extraction",
    "AutoModel",
    ('trivium embed . "A sentence."',),
    'bundle.embed(["A sentence."])',
)


def use_of(config: ModelConfig) -> Use:
    """How a model of this config is used."""
    if config.head == "lm":
        return LANGUAGE_MODELS[config.kind]
    return EMBEDDER if (config.kind, config.head) == ("encoder", "none") else HEADS[config.head]


def model_card(name: str, config: ModelConfig, model_type: str, stored: str, notes: str, mask: str = "[MASK]") -> str:
    """Markdown with the header the Hugging Face hub reads.

    `stored` is how its weights are stored: a precision, or the format of packed ones, which transformers cannot read.
    `notes` (markdown) tells where the model comes from; `mask` is the mask token's text.
    """
    use = use_of(config)
    article = "An" if use.what[0] in "aeiou" else "A"
    notes = f"\n{notes.strip()}\n" if notes.strip() else ""
    return f"""---
library_name: {"transformers" if stored in get_args(Precision) else "trivium"}
pipeline_tag: {use.pipeline}
tags: [trivium, {model_type}]
---

# {name}

{article} {use.what} in the {model_type} format, made with Trivium.
{notes}
{_table(config, stored)}

## Use

{_shell(use, mask)}In Python:

```python
import trivium as tv

bundle = tv.load(".")
print({use.python.format(mask=mask)})
```
{_transformers(use) if stored in get_args(Precision) else PACKED}"""


PACKED = """
The weights are packed, so that `transformers` refuses this directory; a dense one for it is written by

    trivium export . --to hf --out dense
"""


def _transformers(use: Use) -> str:
    return f"""
With transformers:

```python
from transformers import {use.auto}, AutoTokenizer

model = {use.auto}.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```
"""


def _table(config: ModelConfig, stored: str) -> str:
    layers = f"{config.layers} + {config.decoder_layers}" if config.decoder_layers else f"{config.layers}"
    tied = "shared with the output" if config.tied_embeddings else "separate from the output"
    rows = [
        ("parameters", f"{num_parameters(config):,}"),
        ("layers x width", f"{layers} x {config.width}"),
        ("heads (query / key-value)", f"{config.heads} / {config.kv_heads}"),
        ("vocabulary", f"{config.vocab_size:,}" + (f" (embeddings {tied})" if config.head == "lm" else "")),
        ("context", f"{config.max_positions:,} tokens"),
    ]
    if config.labels:
        shown = ", ".join(label.replace("|", "\\|").replace("\n", " ") for label in config.labels[:20])
        rows.append(("labels", shown + (", ..." if len(config.labels) > 20 else "")))
    rows.append(("weights stored as", stored))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _shell(use: Use, mask: str) -> str:
    if not use.shell:
        return ""
    commands = "\n".join(f"    {command.format(mask=mask)}" for command in use.shell)
    return f"In a shell, in this directory:\n\n{commands}\n\n"
