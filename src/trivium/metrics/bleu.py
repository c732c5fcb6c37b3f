"""BLEU (Papineni et al., 2002) of a corpus, by `sacrebleu`, whose numbers papers quote, with its signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.errors import UserError


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, Any]:
    """{"bleu": 0 to 100, "precisions": of 1- to 4-grams, "brevity_penalty", "signature"}.

    Texts are detokenized; sacrebleu's defaults apply (tokenizer 13a, exponential smoothing). A prediction may have
    several references, all predictions the same number of them. Raises UserError when the lengths differ.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} predictions for {len(references)} references: give one line for each")
    if not predictions:
        raise UserError("there are no predictions to score")
    targets = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    if len({len(several) for several in targets}) != 1 or not targets[0]:
        raise UserError("every prediction needs the same number of references, at least one")
    metric = BLEU()
    result = metric.corpus_score(list(predictions), [list(stream) for stream in zip(*targets, strict=True)])
    return {
        "bleu": result.score,
        "precisions": list(result.precisions),
        "brevity_penalty": result.bp,
        "signature": str(metric.get_signature()),
    }
