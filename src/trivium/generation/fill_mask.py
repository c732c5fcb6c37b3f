"""A text with blanks to the tokens that fill them: for masked language models (Devlin et al., 2019, section 3.1).

A blank is the tokenizer's mask token, or the literal `[MASK]` whatever the tokenizer's own mask token is. Each blank
stands for one token. Several are judged each by itself, all of them being hidden from the model.

Invariant its test checks: tokens and probabilities are those of `transformers`' fill-mask pipeline.

Shapes: M blanks, T positions, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.encoding import Inputs, hidden_states, read_all, wrap
from trivium.generation.prompts import encode_with_blanks
from trivium.generation.purposes import refuse_unless
from trivium.models.build import Model

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

# How a blank may always be written.
BLANK = "[MASK]"


@dataclass(frozen=True)
class Candidate:
    """One way to fill a blank."""

    token: str
    """Its text, without the space before it that belongs to some tokens."""
    probability: float
    """Of this token among all of the vocabulary."""
    text: str
    """The whole text with this blank filled, and no special tokens; other blanks are shown."""
    id: int
    """The token's id."""


def fill_mask(model: Model, tokenizer: Tokenizer, text: str, top_k: int = 5) -> list[Candidate]:
    """The `top_k` likeliest tokens for the first blank of `text`, best first. Errors as in `fill_masks`."""
    return fill_masks(model, tokenizer, text, top_k)[0]


def fill_masks(model: Model, tokenizer: Tokenizer, text: str, top_k: int = 5) -> list[list[Candidate]]:
    """`fill_mask` of every blank of `text`, from left to right.

    Raises UserError when the text has no blank or is too long, and when the model is no masked language model.
    """
    refuse_unless(model.config, "filling a mask", ["encoder"])
    if top_k < 1:
        raise UserError(f"top_k is {top_k}: ask for at least one candidate")
    ids = _encoded(tokenizer, text)
    wrapped = wrap(tokenizer, model.config, ids, name="the text")
    blanks = [place for place, token in enumerate(wrapped.ids) if token == tokenizer.mask_id]

    def logprobs(inputs: Inputs) -> Tensor:
        hidden_MD = hidden_states(model, inputs)[0, blanks]
        return model.logits(hidden_MD)[None].float().log_softmax(-1)

    (logprobs_MV,) = read_all(model, [wrapped], logprobs)
    if not torch.isfinite(logprobs_MV[:, 0]).all():
        raise UserError("the model's scores are not finite: its weights are damaged, or overflow in its precision")
    known_MV = logprobs_MV[:, : tokenizer.vocab_size]
    best = known_MV.exp().topk(min(top_k, known_MV.shape[1]))
    return [
        [_candidate(tokenizer, wrapped.ids, place, token, p) for token, p in zip(tokens, probabilities, strict=True)]
        for place, tokens, probabilities in zip(blanks, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of the text, its blanks among them."""
    if tokenizer.mask_token is None:
        raise UserError("the tokenizer has no mask token, so there is nothing that a blank could be")
    own = tokenizer.mask_token
    ids = encode_with_blanks(tokenizer, text.replace(BLANK, own))
    if tokenizer.mask_id not in ids:
        raise UserError(f"the text has no {BLANK} to fill in: write it where a word is missing")
    return ids


def _candidate(tokenizer: Tokenizer, ids: Sequence[int], blank: int, token: int, probability: float) -> Candidate:
    """The text with one blank filled."""
    shown = {tokenizer.mask_id}
    special = set(tokenizer.special_tokens.values()) - shown
    filled = [token if place == blank else held for place, held in enumerate(ids)]
    # The special tokens around the text are no part of it; the chosen token is shown whatever it is.
    kept = [held for place, held in enumerate(filled) if place == blank or held not in special]
    return Candidate(
        token=tokenizer.decode([token]).strip(),
        probability=probability,
        text=tokenizer.decode(kept).strip(),
        id=token,
    )
