"""More (or fewer) token ids for a model that is there already.

Every added row of the embedding table, of an untied head and of its bias is the mean of the old rows (Hewitt, 2021,
"Initializing new word embeddings for pretrained language models"): a new token then begins with the average logit, and
probabilities of the others change by a factor of about V / (V + added) only. `transformers` draws its new rows around
the same mean with a tiny covariance (1e-9 of the old rows'); here they are the mean exactly, so that nothing is random.

Invariant its test checks: logits of old ids do not change, and tied tables stay tied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.models.config_checks import LARGEST
from trivium.quantization.quantize import refuse_quantized


def resize_vocabulary(model: Model, config: ModelConfig, new_size: int, *, shrink: bool = False) -> ModelConfig:
    """Give `model` (in place) `new_size` token ids; the config it then has.

    Its tables become new parameters, so an optimizer is made afterwards. Fewer ids than before, the last of which are
    forgotten, must be allowed by `shrink`. Raises UserError for a size that makes no sense.
    """
    if not 1 <= new_size <= LARGEST:
        raise UserError(f"vocab_size must be from 1 to {LARGEST}, not {new_size}")
    if new_size < config.vocab_size and not shrink:
        raise UserError(
            f"vocab_size {new_size} is below the model's {config.vocab_size}: the last "
            f"{config.vocab_size - new_size} tokens would be forgotten; allow it with shrink=True"
        )
    if config.kind == "encoder-decoder" and config.decoder_start_id >= new_size:
        raise UserError(f"vocab_size {new_size} leaves out the id that a target begins with, {config.decoder_start_id}")
    refuse_quantized(model, "resized")
    resized = config.changed(vocab_size=new_size)
    model.embedding.weight = _resized(model.embedding.weight, new_size)
    model.embedding.num_embeddings = new_size
    head = model.head
    if head.bias is not None:
        head.bias = _resized(head.bias, new_size)
    if config.head == "lm" and head.output is not None:
        head.output.weight = _resized(head.output.weight, new_size)
        head.output.out_features = new_size
        if head.output.bias is not None:
            head.output.bias = _resized(head.output.bias, new_size)
    model.config = head.config = resized
    return resized


def _resized(rows: Tensor, size: int) -> nn.Parameter:
    """The first rows, and their mean as often as there are too few."""
    old = rows.detach()
    # The sum of a large table in half precision would be no mean at all.
    added = old.mean(0, keepdim=True, dtype=torch.float64).to(old.dtype).expand(max(0, size - len(old)), *old.shape[1:])
    return nn.Parameter(torch.cat([old[:size], added]).contiguous(), requires_grad=rows.requires_grad)
