"""Published model families: each one's config and tensors, translated both ways (no torch here).

A family is a `Family` record in a file of its own, listed in `FAMILIES` under the `model_type` of its config.json.
"""

from __future__ import annotations

from trivium.errors import UserError
from trivium.families.bart import BART
from trivium.families.bert import BERT
from trivium.families.bloom import BLOOM
from trivium.families.distilbert import DISTILBERT
from trivium.families.family import Family
from trivium.families.gemma2 import GEMMA2
from trivium.families.gemma3 import GEMMA3
from trivium.families.gpt2 import GPT2
from trivium.families.gpt_neox import GPT_NEOX
from trivium.families.llama import LLAMA
from trivium.families.marian import MARIAN
from trivium.families.mbart import MBART
from trivium.families.mistral import MISTRAL
from trivium.families.modernbert import MODERNBERT
from trivium.families.opt import OPT
from trivium.families.qwen2 import QWEN2
from trivium.families.qwen3 import QWEN3
from trivium.families.roberta import ROBERTA
from trivium.families.t5 import T5
from trivium.models.config import ModelConfig

# In the order in which a family is looked for when a model is saved: the most widely read first.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GPT2, GPT_NEOX, OPT, BLOOM),
        *(BERT, ROBERTA, DISTILBERT, MODERNBERT),
        *(T5, BART, MBART, MARIAN),
    )
}


def family_for(config: ModelConfig) -> Family:
    """The published family that a model of this config can be saved as, so that other software opens it.

    Raises UserError that says, for the families nearest to it, which fields would have to change.
    """
    changes = {name: family.obstacles(config) for name, family in FAMILIES.items() if family.kind == config.kind}
    for name, obstacles in changes.items():
        if not obstacles:
            return FAMILIES[name]
    nearest = sorted(changes, key=lambda name: len(changes[name]))[:3]
    ways = "; ".join(f"to be a {name}: {', '.join(changes[name])}" for name in nearest)
    raise UserError(f"no published family has models of this shape, so nothing else could open it; {ways}")
