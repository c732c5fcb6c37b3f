"""Names that decoder families share: heads, and how a table of one block's modules becomes the tensors of all.

A table is a list of `Weight` whose names are those of modules, without block number and without ".weight" or ".bias".
Which of the two a module has follows from the config alone, so that a table is the same for all options of a family.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from trivium.families.family import HeadForm, Layout, Weight
from trivium.models.config import Head, ModelConfig

QUERY_KEY_VALUE = ("attention.query", "attention.key", "attention.value")
# A bias is a vector: what is transposed of a matrix leaves it as it is.
LAYOUT_OF_BIAS: dict[Layout, Layout] = {"transposed": "same", "stacked_transposed": "stacked"}


def tensor_kinds(config: ModelConfig, module: str) -> tuple[str, ...]:
    """("weight", "bias") or ("weight",) of a module of ours, named within its block or stack ("attention.query")."""
    if module.endswith(("query_norm", "key_norm")):
        biased = False
    elif module.endswith("norm"):
        biased = config.norm == "layernorm"
    elif module.startswith("mlp."):
        biased = config.mlp_bias
    else:
        biased = config.attention_output_bias if module == "attention.output" else config.qkv_bias
    return ("weight", "bias") if biased else ("weight",)


def module_tensors(published: str, ours: str, *, bias: bool = True) -> Iterator[Weight]:
    """The weight of any one module, and its bias where it has one."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Weight(f"{published}.{kind}", (f"{ours}.{kind}",))


def module_weights(config: ModelConfig, published: str, ours: str) -> Iterator[Weight]:
    """The tensors of one module of the stack outside its blocks, such as its last norm."""
    for kind in tensor_kinds(config, ours):
        yield Weight(f"{published}.{kind}", (f"stack.{ours}.{kind}",))


def block_weights(config: ModelConfig, published: str, modules: Iterable[Weight]) -> Iterator[Weight]:
    """The tensors of all blocks; `published` is what stands before a block's number ("model.layers")."""
    modules = tuple(modules)
    for layer in range(config.layers):
        for name, ours, layout in modules:
            for kind in tensor_kinds(config, ours[0]):
                parameters = tuple(f"stack.blocks.{layer}.{module}.{kind}" for module in ours)
                form = layout if kind == "weight" else LAYOUT_OF_BIAS.get(layout, layout)
                yield Weight(f"{published}.{layer}.{name}.{kind}", parameters, form)


def decoder_heads(stem: str, lm: str = "ForCausalLM", without: Container[Head] = ()) -> dict[Head, HeadForm]:
    """The heads of a decoder whose classes in transformers begin with `stem`."""
    heads: dict[Head, HeadForm] = {
        "lm": HeadForm(f"{stem}{lm}"),
        "classification": HeadForm(f"{stem}ForSequenceClassification", {"pooling": "last"}),
        "scalar": HeadForm(f"{stem}ForSequenceClassification", {"pooling": "last"}),
        "token_classification": HeadForm(f"{stem}ForTokenClassification", {"head_bias": True}),
        "span": HeadForm(f"{stem}ForQuestionAnswering", {"head_bias": True}),
        "none": HeadForm(f"{stem}Model"),
    }
    return {head: form for head, form in heads.items() if head not in without}


def head_weights(config: ModelConfig, *, lm: str = "lm_head", token_classification: str = "score") -> Iterator[Weight]:
    """The tensors of a decoder's head; none where there is none, or where it is the embedding table."""
    if config.head == "none" or (config.head == "lm" and config.tied_embeddings):
        return
    names = {"lm": lm, "span": "qa_outputs", "token_classification": token_classification}
    for kind in ("weight", "bias") if config.head_bias else ("weight",):
        yield Weight(f"{names.get(config.head, 'score')}.{kind}", (f"head.output.{kind}",))


def tied_copy(config: ModelConfig, copy: str, original: str) -> dict[str, str]:
    """{copy: original} for a head that is the embedding table, which a file may hold once more."""
    return {copy: original} if config.head == "lm" and config.tied_embeddings else {}
