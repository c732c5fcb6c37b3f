"""A model in fewer bits: `quantize_model(model, "int8")`.

Everything is checked before anything is changed: a weight that is no finite number, or beyond what the format holds, is
refused by its name. Matrices are packed one after another and each is let go, so that the peak is the model and one
packed matrix. Calibrated methods see real text and pack the blocks themselves; what they leave is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.build import Model
from trivium.progress import SILENT, Progress
from trivium.quantization.packing import pack, refuse_unfit
from trivium.quantization.replacing import matrices, put_packed, refuse_unknown, scheme_of, set_scheme
from trivium.quantization.schemes import Format, Scheme, layout, refuse_packed, scheme_for

if TYPE_CHECKING:
    from trivium.quantization.calibration import Batch

DENSE_DTYPES: dict[Format, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


def quantize_model(
    model: Model,
    scheme: str | Scheme,
    *,
    calibration: Sequence[Batch] | None = None,
    progress: Progress = SILENT,
) -> Model:
    """Pack the matrices of `model` in place (for fp16 and bf16: convert it), and return it.

    `calibration` holds batches of token ids, (B, T), of an encoder-decoder pairs of source and target; gptq and awq
    need them. Raises UserError for a model that is quantized already, for weights that the format cannot hold, and for
    names in `scheme.keep` that the model does not have.
    """
    scheme = scheme_for(scheme)
    refuse_quantized(model, "quantized again")
    if hasattr(model, "adapters"):
        raise UserError("the model has an adapter, made for its weights as they are: merge or remove it first")
    refuse_unknown(model, scheme)
    if not scheme.packs:
        for name, tensor in model.state_dict().items():
            refuse_unfit(tensor, scheme.format, name)
        model.to(DENSE_DTYPES[scheme.format])
        set_scheme(model, scheme)
        return model
    for name, module in matrices(model, scheme).items():
        refuse_unfit(module.weight.detach(), layout(scheme, module.weight.shape[1], name).kind, name)
    if scheme.method != "nearest":
        _calibrate(model, scheme, calibration, progress)
    left = matrices(model, scheme)
    progress.start(f"packing as {scheme.format}", len(left), "tensors")
    while left:
        name = next(iter(left))
        put_packed(model, name, pack(left.pop(name).weight.detach(), scheme, name))
        progress.advance()
    progress.finish()
    set_scheme(model, scheme)
    return model


def _calibrate(model: Model, scheme: Scheme, calibration: Sequence[Batch] | None, progress: Progress) -> None:
    """Let the method of `scheme` pack the blocks."""
    if not calibration:
        raise UserError(f"method {scheme.method} needs calibration text: it looks at what the matrices really read")
    if scheme.method == "gptq":
        from trivium.quantization import gptq

        gptq.quantize_blocks(model, scheme, calibration, progress=progress)
    else:
        from trivium.quantization import awq

        awq.quantize_blocks(model, scheme, calibration, progress=progress)


def refuse_quantized(model: nn.Module, what: str) -> None:
    """`schemes.refuse_packed` of a model."""
    refuse_packed(scheme_of(model), what)


def tensors_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a model; tied ones count once."""
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
