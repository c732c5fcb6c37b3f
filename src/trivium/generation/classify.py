"""Texts, or pairs of texts, to classes: for models with a classification head, of any of the three kinds.

The probabilities are the softmax of the head's scores. A head with a single output is a regression: its number is the
score of its only label (`score`, where that has no name), as it is. An encoder-decoder reads the text twice, as source
and, shifted right, as target, and is judged where the text ends (BART; Lewis et al., 2020, section 3).

Invariant its test checks: probabilities are those of `transformers` for equal weights, and do not depend on the batch.

Shapes: B rows, T positions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from trivium.errors import UserError
from trivium.generation.encoding import TOKENS_PER_BATCH, Inputs, read_all, wrap_all
from trivium.generation.purposes import refuse_unless
from trivium.models.build import MODELS, Model
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder, shifted_right
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

# The label of a head that gives one number.
UNNAMED = "score"


@dataclass(frozen=True)
class Classification:
    """What a text was judged to be."""

    label: str
    """The likeliest class; of a regression its only label."""
    probabilities: dict[str, float]
    """The probability of every class, in the model's order; of a regression its number, which is no probability."""


def classify(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress = SILENT,
    description: str = "reading texts",
) -> list[Classification]:
    """The class of each text, or of each text with the one of `pairs` that has its place.

    `description` is what `progress` calls the work.
    Raises UserError when the model has no classification head, a text is too long for it, or its scores are not
    numbers.
    """
    config = model.config
    refuse_unless(config, "classification", list(MODELS), ["classification", "scalar"])
    wrapped = wrap_all(tokenizer, config, texts, pairs)
    scores = read_all(
        model,
        wrapped,
        lambda inputs: head_scores(model, inputs),
        tokens_per_batch=tokens_per_batch,
        progress=progress,
        description=description,
    )
    return [_judged(config.labels or (UNNAMED,), scores_C.view(-1)) for scores_C in scores]


def head_scores(model: Model, inputs: Inputs) -> Tensor:
    """What the head makes of a batch: (B, C), (B,) of a scalar head, or (B, T, C) of one for positions."""
    ids_BT, segments_BT = inputs.ids_BT, inputs.segments_BT
    if isinstance(model, Encoder):
        result: Tensor = model(ids_BT, segments=segments_BT, types=inputs.types_BT)
    elif isinstance(model, EncoderDecoder):
        shifted_BT = shifted_right(ids_BT, model.config.decoder_start_id)
        result = model(ids_BT, shifted_BT, source_segments=segments_BT, segments=segments_BT)
    else:
        result = model(ids_BT, segments=segments_BT)
    return result


def _judged(labels: Sequence[str], scores_C: Tensor) -> Classification:
    if not scores_C.isfinite().all():
        raise UserError(
            "the model's scores are not finite, so no class can be chosen: its weights are damaged, or overflow in its "
            "precision (load it in fp32 or bf16)"
        )
    values = (scores_C.softmax(-1) if len(labels) > 1 else scores_C).tolist()
    return Classification(labels[int(scores_C.argmax())], dict(zip(labels, values, strict=True)))
