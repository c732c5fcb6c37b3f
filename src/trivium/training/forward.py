"""From a batch to the hidden states that its targets are predicted from, for models of all three kinds."""

from __future__ import annotations

from torch import Tensor, nn

from trivium.data.batch import Batch
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder


def target_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, D): the hidden states at the positions of `batch.targets`."""
    if isinstance(model, EncoderDecoder):
        assert batch.source_ids is not None
        encoded = model.encode(batch.source_ids, positions=batch.source_positions, segments=batch.source_segments)
        memory = model.memory(encoded, batch.source_segments)
        return model.hidden(batch.ids, memory=memory, positions=batch.positions, segments=batch.segments)[0]
    if isinstance(model, Encoder):
        return model.hidden(batch.ids, positions=batch.positions, segments=batch.segments, types=batch.types)
    assert isinstance(model, Decoder)
    hidden_BTD, _ = model.hidden(batch.ids, positions=batch.positions, segments=batch.segments, prefix=batch.prefix)
    return hidden_BTD
