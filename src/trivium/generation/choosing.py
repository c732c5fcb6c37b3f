"""From the scores of what may come next to the token that does, and its log-probability under the model itself.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.filters import Past
from trivium.generation.rows import Row, Rules
from trivium.generation.sampling import draw, uniform


@torch.inference_mode()
def choose(logits_BV: Tensor, rows: Sequence[Row], rules: Rules) -> list[tuple[int, float]]:
    """The next token of each row, all of the same rules, and its log-probability under the unfiltered model (nats).

    Raises UserError when scores are not numbers, and when no token is left to choose.
    """
    scores_BV = logits_BV.float()  # on a CPU the rest is several times slower in half precision
    logprobs_BV = scores_BV.log_softmax(-1)  # half the time of logsumexp
    if logprobs_BV[:, 0].isnan().any():  # one NaN or +inf makes its whole row NaN
        raise not_finite(logits_BV.dtype)
    # An embedding table may be longer than the vocabulary, to suit the hardware: its tail is never chosen.
    filtered_BV = rules.pipe(scores_BV[:, : rules.vocab_size], _past(rows, rules, scores_BV))
    if rules.settings.greedy:
        tokens_B = likeliest(filtered_BV)
    else:
        tokens_B = draw(filtered_BV, [uniform(row.seed, len(row.tokens)) for row in rows])
    chosen_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
    return list(zip(tokens_B.tolist(), chosen_B.tolist(), strict=True))


def likeliest(scores_BV: Tensor) -> Tensor:
    """(B,) int64: argmax, which numpy finds ten times as fast as torch does on a CPU."""
    if scores_BV.device.type == "cpu":
        return torch.from_numpy(scores_BV.numpy().argmax(-1))
    return scores_BV.argmax(-1)


def not_finite(dtype: torch.dtype) -> UserError:
    """What to say of scores that are not numbers."""
    return UserError(
        "the model's scores are not finite, so no token can be chosen: its weights are damaged, or "
        f"overflow in {dtype} (load it in fp32 or bf16)"
    )


def _past(rows: Sequence[Row], rules: Rules, scores_BV: Tensor) -> Past:
    settings = rules.settings
    ids = [[*row.before, *row.tokens] for row in rows] if settings.no_repeat_ngram_size else []
    seen_BV = None
    if settings.repetition_penalty != 1.0:
        seen_BV = torch.stack([_seen(row, scores_BV) for row in rows])[:, : rules.vocab_size]
    return Past(ids, [len(row.tokens) for row in rows], [row.limit for row in rows], seen_BV)


def _seen(row: Row, scores_BV: Tensor) -> Tensor:
    """(V,) bool: the tokens a row holds; between two calls it gets one token more."""
    if row.seen_V is None:
        row.seen_V = torch.zeros(scores_BV.shape[-1], dtype=torch.bool, device=scores_BV.device)
        row.seen_V[row.before] = True
    row.seen_V[row.tokens[-1:]] = True
    return row.seen_V
