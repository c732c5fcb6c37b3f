"""How large a model, and how many steps, fit a machine and a number of minutes.

Training costs about 6 N D FLOPs for N parameters and D tokens (Kaplan et al. 2020, arXiv:2001.08361, 2.1). With C FLOPs
to spend, N is chosen so that D / N is `TOKENS_PER_PARAMETER`; for a fixed corpus that is read again and again the best
ratio is below the 20 of Hoffmann et al. (2022, arXiv:2203.15556). Then real steps of that very model are timed, and the
time left decides how many of them there are.
"""

from __future__ import annotations

import math
import time

import torch

from trivium.data.batch import IGNORED, Batch
from trivium.families import FAMILIES
from trivium.models.build import build_model, initialise
from trivium.models.config import Kind, ModelConfig
from trivium.models.counts import num_parameters, training_flops_per_token
from trivium.quickstart.state import FAMILY, MASK_SHARE
from trivium.runtime import Runtime
from trivium.training.distributed import Peers
from trivium.training.gradients import GradientMaker
from trivium.training.optimizer import AdamW, trainable_parameters
from trivium.training.settings import TrainingSettings
from trivium.training.token_objective import TokenObjective

# Width and layers of the models on offer: heads are 64 wide.
SHAPES = ((128, 3), (192, 4), (256, 5), (320, 6), (384, 6), (448, 8), (512, 8), (640, 10), (768, 12), (1024, 16))
TOKENS_PER_PARAMETER = 1.0
# Share of the machine's best product rate that a training step of such small models usually reaches.
USUAL_UTILISATION = 0.5


def shape_for(
    flops: float, vocab_size: int, sequence_length: int, most_tokens: float = math.inf, kind: Kind = "decoder"
) -> ModelConfig:
    """The model to spend `flops` on: the one whose tokens per parameter come nearest to the ratio wanted.

    `most_tokens`: no more than so many are trained on, however many FLOPs there are.
    """
    family = FAMILIES[FAMILY[kind]]

    def model(shape: tuple[int, int]) -> ModelConfig:
        width, layers = shape
        sizes = {
            "vocab_size": vocab_size,
            "width": width,
            "layers": -(-layers // 2) if kind == "encoder-decoder" else layers,
            "heads": width // 64,
            "max_positions": sequence_length,
        }
        return ModelConfig(**{**family.shape, "kind": kind, **sizes})

    def excess(config: ModelConfig) -> float:
        tokens = min(flops / training_flops_per_token(config, sequence_length), most_tokens)
        ratio = tokens / num_parameters(config) / TOKENS_PER_PARAMETER
        return max(ratio, 1 / ratio)

    return min((model(shape) for shape in SHAPES), key=excess)


def time_steps(
    config: ModelConfig, runtime: Runtime, training: TrainingSettings, rows: int, micro_rows: int, seconds: float
) -> float:
    """Seconds of one real optimizer step of `rows` rows, the best of those that fit into `seconds` (at least two)."""
    device = runtime.torch_device()
    model = build_model(config).to(device)
    initialise(model, config, 0)
    optimizer = AdamW(trainable_parameters(model), training)
    parameters = list(optimizer.parameters.values())
    gradients = GradientMaker(model, TokenObjective(), parameters, runtime, Peers(runtime), rows)
    batch = _batch(config, micro_rows).to(device)
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < 2 or time.perf_counter() + min(took) < end:
        began = time.perf_counter()
        gradients.make([batch] * -(-rows // micro_rows), 0)
        optimizer.step(0.0)
        optimizer.drop_gradients()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return min(took)


def _batch(config: ModelConfig, rows: int) -> Batch:
    """Rows as full as those of the usual objective of each kind of model; two documents in each."""
    ids = torch.randint(config.vocab_size, (rows, config.max_positions))
    segments = torch.ones_like(ids, dtype=torch.int32)
    segments[:, config.max_positions // 2 :] = 2
    if config.kind == "encoder":
        return Batch(ids, torch.where(torch.rand(ids.shape) < MASK_SHARE, ids, IGNORED), None, segments)
    if config.kind == "encoder-decoder":  # 15 % are cut out, in spans of three with a sentinel each
        target = slice(0, max(2, config.max_positions // 4))
        return Batch(
            ids[:, target],
            ids[:, target],
            None,
            segments[:, :: config.max_positions // target.stop][:, target],
            source_ids=ids,
            source_segments=segments,
        )
    return Batch(ids, ids, None, segments)
