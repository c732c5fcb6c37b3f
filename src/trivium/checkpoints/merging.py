"""One model directory made of an adapter and its base, and how near it is to the two.

The base is opened in full precision, the adapter worked into its weights (`peft/apply.merge_adapter`), the result
written and opened again. What it says of real text, the standard library of Python, is then compared with what base and
adapter said: this counts the rounding of the merge and that of the type the weights are stored in.

Invariant its test checks: in fp32 the largest difference is that of rounding; another scale of the product is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivium.checkpoints.adapter_reading import is_adapter, read_adapter_files
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.calibration_text import calibration_batches
from trivium.checkpoints.directory import replaceable
from trivium.checkpoints.resolve import resolve_model
from trivium.errors import UserError
from trivium.models.heads import OF_A_TEXT
from trivium.peft.apply import adapter_of, refuse_unmergeable
from trivium.peft.settings import METHODS
from trivium.progress import SILENT, Progress
from trivium.runtime import Precision

WINDOWS = 4
"""Windows of text that are compared."""


def merge_adapter_directory(
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: Precision = "fp32",
    device: str = "cpu",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write the model that an adapter and its base make together, weights in `dtype`; returns what is compared.

    {"model", "method", "dtype", "positions", "max_logit_difference", "kl" (nats for each position, of the merged model
    from the pair), "top1_agreement"}; of heads that are no language model's, "max_difference" instead of these three.
    UserError for methods that cannot be merged, and for a place that holds something else.
    """
    path = resolve_model(adapter)
    if not is_adapter(path):
        raise UserError(f"{path} is no adapter: there is nothing to merge")
    _refuse_early(read_adapter_files(path).kind)
    out = replaceable(out)
    bundle = load(path, device=device)
    method = adapter_of(bundle.model, "default").settings.method
    refuse_unmergeable(method)
    progress.note("base and adapter read real text, to compare the merged model with")
    before = list(_results(bundle))
    bundle.merge_adapter("default")
    bundle.save(out, dtype=dtype, notes=f"Made of `{bundle.source}` and an adapter ({method}) by `trivium merge`.")
    merged = load(out, device=device)
    return {"model": str(out), "method": method, "dtype": dtype, **_compared(before, list(_results(merged)), merged)}


def _refuse_early(kind: str) -> None:
    """UserError for a `peft_type` of a method that cannot be merged, before the base is read."""
    method = kind.removeprefix("TRIVIUM_").removesuffix("_TUNING").lower()
    method = {"p": "p_tuning"}.get(method, method)
    if method in METHODS:
        refuse_unmergeable(method)


@torch.inference_mode()
def _results(bundle: Bundle) -> Iterator[Tensor]:
    """What the head says of each batch of text, in fp32; of an `lm` head (T, V) for all positions."""
    for batch in calibration_batches(bundle.config, bundle.tokenizer, windows=WINDOWS):
        given = batch if isinstance(batch, tuple) else (batch,)
        result = bundle.model(*(each.to(bundle.model.device) for each in given)).float().cpu()
        yield result.flatten(0, -2) if bundle.config.head not in OF_A_TEXT and result.ndim > 2 else result


def _compared(before: list[Tensor], after: list[Tensor], bundle: Bundle) -> dict[str, Any]:
    """How near two lists of results are."""
    largest = max(float((one - two).abs().max()) for one, two in zip(before, after, strict=True))
    if bundle.config.head != "lm":
        return {"max_difference": largest}
    positions, kl, same = 0, 0.0, 0
    for one, two in zip(before, after, strict=True):
        p, q = one.double().log_softmax(-1), two.double().log_softmax(-1)
        positions += len(one)
        kl += float((p.exp() * (p - q)).sum())
        same += int((one.argmax(-1) == two.argmax(-1)).sum())
    return {
        "positions": positions,
        "max_logit_difference": largest,
        "kl": kl / positions,
        "top1_agreement": same / positions,
    }
