"""The README.md of a model directory: what the model is and how to use it."""

from __future__ import annotations

from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.runtime import Precision


def model_card(name: str, config: ModelConfig, model_type: str, dtype: Precision, notes: str) -> str:
    """Markdown with the header the Hugging Face hub reads; `notes` (markdown) tells where the model comes from."""
    tied = "shared with the output" if config.tied_embeddings else "separate from the output"
    notes = f"\n{notes.strip()}\n" if notes.strip() else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [trivium, {model_type}]
---

# {name}

A causal language model in the {model_type} format, made with Trivium.
{notes}
| | |
|---|---|
| parameters | {num_parameters(config):,} |
| layers x width | {config.layers} x {config.width} |
| heads (query / key-value) | {config.heads} / {config.kv_heads} |
| vocabulary | {config.vocab_size:,} (embeddings {tied}) |
| context | {config.max_positions:,} tokens |
| weights stored as | {dtype} |

## Use

In a shell, in this directory:

    trivium generate . --prompt "Once upon a time"
    trivium metric perplexity . --file some.txt

In Python:

```python
import trivium as tv

bundle = tv.load(".")
print(bundle.generate("Once upon a time").text)
```

With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```
"""
