"""Which model is for what: a request that a model cannot serve is refused with the verb that is meant for it."""

from __future__ import annotations

from collections.abc import Collection

from trivium.errors import UserError
from trivium.models.config import Head, Kind, ModelConfig

# The verb for each kind of language model, and for each other head; the rest have none yet.
VERB_OF_KIND: dict[Kind, str] = {"decoder": "generate", "encoder": "fill-mask", "encoder-decoder": "seq2seq"}
VERB_OF_HEAD: dict[Head, str] = {"classification": "classify", "scalar": "classify", "none": "embed"}
TOKENS: tuple[Head, ...] = ("lm",)
# verb: (what is asked for, the kinds, the heads that can do it).
USES: dict[str, tuple[str, tuple[Kind, ...], tuple[Head, ...]]] = {
    "generate": ("generation", ("decoder", "encoder-decoder"), TOKENS),
    "chat": ("chat", ("decoder",), TOKENS),
    "fill-mask": ("filling a mask", ("encoder",), TOKENS),
    "seq2seq": ("seq2seq", ("encoder-decoder",), TOKENS),
    "classify": ("classification", ("decoder", "encoder", "encoder-decoder"), ("classification", "scalar")),
}


def refuse_unless(config: ModelConfig, what: str, kinds: Collection[Kind], heads: Collection[Head] = TOKENS) -> None:
    """Raises UserError when the model is none of `kinds` or has none of `heads`; `what` is what was asked for."""
    if config.kind in kinds and config.head in heads:
        return
    needed = f"with {' or '.join(map(_head, heads))}"
    if set(kinds) >= set(VERB_OF_KIND):  # only the head is wrong, and another verb would do something else
        raise UserError(f"{what} needs a model {needed}; this one has {_head(config.head)}")
    raise UserError(f"{what} needs {' or '.join(map(_with_article, kinds))} {needed}; {description(config)}")


def refuse_unless_causal(config: ModelConfig, what: str = "perplexity") -> None:
    """UserError that says why the model has no `what`, unless it predicts each token from those before it."""
    if config.kind == "encoder" and config.head == "lm":
        raise UserError(f"a masked model has no {what}: it predicts a token from both sides; use fill-mask")
    if config.kind == "encoder-decoder" and config.head == "lm":
        raise UserError(f"an encoder-decoder has no {what} without a source to predict the text from; use seq2seq")
    refuse_unless(config, what, ["decoder"])


def refuse_use(config: ModelConfig, verb: str) -> None:
    """UserError when a model of this config cannot serve a verb of the command line: asked before weights are read."""
    if verb == "perplexity":
        refuse_unless_causal(config)
    else:
        refuse_unless(config, *USES[verb])


def description(config: ModelConfig) -> str:
    """What the model is, and what to use it for."""
    verb = VERB_OF_KIND[config.kind] if config.head == "lm" else VERB_OF_HEAD.get(config.head)
    cure = f": use {verb}" if verb else ""
    return f"this model is {_with_article(config.kind)} with {_head(config.head)}{cure}"


def _head(head: Head) -> str:
    return {"lm": "a token head (lm)", "none": "no head"}.get(head, f"a {head} head")


def _with_article(kind: Kind) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
