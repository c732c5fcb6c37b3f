"""How far a quantized model is from the original, measured on real text.

For each scored position with the original's distribution p and the quantized model's q: KL(p || q) = sum p (log p -
log q) in nats, whether both have the same likeliest token, and by how much log q of the true token is worse than log p.
That last change comes with an interval by the paired bootstrap (Efron & Tibshirani, 1993): rows of text are drawn again
with repetition, each with both models' sums, so what makes a row hard for both does not widen it.

Errors of a block's parts are measured on the original's own hidden states: each block of both models is run on the same
input, and what attention and MLP add to the residual stream is compared, |y' - y| / |y|. So they show which block loses
most, free of what blocks before it lost; scales that were moved between matrices of a block (AWQ) do not disturb them.

Logits exist for a bounded number of positions at a time. Invariants its tests check: a model against itself gives
exactly 0, 1 and [0, 0]; sums equal those of whole logits in fp64; shuffled scales raise every measure.

Shapes: B rows, T positions, N scored positions, R rows of all of the text, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.build import Model
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.models.transformer import Block
from trivium.progress import SILENT, Progress
from trivium.quantization.calibration import Batch, State, Visit, visit_blocks
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.packing import unpack

# Most logits of one model held at once, in numbers: 64 MB in fp32.
LOGITS_PER_CHUNK = 1 << 24
# How often rows are drawn again, and the share of these draws that an interval covers.
DRAWS, LEVEL = 2000, 0.95
# The parts of a block that write to the residual stream.
PARTS = ("attention", "cross", "mlp")


@dataclass(frozen=True)
class ScoredRows:
    """Rows of text for a model with token scores, and what it is to predict."""

    inputs: tuple[Tensor, ...]
    """Arguments of the model's `forward`: (ids (B, T),) or (source (B, S), ids (B, T))."""
    targets_BT: Tensor
    """(B, T) int64: the id to predict at each position; below 0 where none is."""


@dataclass(frozen=True)
class Comparison:
    """Means over all scored positions, in nats."""

    positions: int
    """How many were scored."""
    rows: int
    """Rows they lie in, which are what is drawn again for the interval."""
    nll_original: float
    """Mean negative log-likelihood of the true token under the original."""
    nll_quantized: float
    """The same under the quantized model."""
    interval: tuple[float, float] | None
    """95 % of the difference of the two (quantized - original); None for a single row."""
    kl: float
    """Mean KL(original || quantized)."""
    agreement: float
    """Share of positions where both models have the same likeliest token."""

    @property
    def change(self) -> float:
        """By how many nats per position the quantized model is worse."""
        return self.nll_quantized - self.nll_original


@dataclass(frozen=True)
class PartError:
    """What quantization does to one part of one block."""

    name: str
    """`stack.blocks.0.mlp`."""
    error: float
    """|y' - y| / |y| over all of the text."""


@torch.no_grad()
def compare(
    original: Model,
    quantized: Model,
    rows: Sequence[ScoredRows],
    *,
    states: Sequence[Tensor] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Comparison:
    """Both models on the same rows. Raises UserError when nothing is scored or scores are not finite.

    `states` are the original's `scored_states` on these rows, where they are known already.
    """
    sums: list[Tensor] = []
    progress.start("comparing with the original", total=sum(len(some.targets_BT) for some in rows), unit="rows")
    for number, some in enumerate(rows):
        known = scored_states(original, some) if states is None else states[number]
        sums.append(_sums_of_rows(original, quantized, some, known))
        progress.advance(len(some.targets_BT))
    progress.finish()
    table_R5 = torch.cat(sums) if sums else torch.zeros(0, 5)
    positions, before, after, kl, equal = table_R5.sum(0).tolist()
    if not positions:
        raise UserError("comparing models: the text has no token to predict; give a longer one")
    if not bool(torch.isfinite(table_R5).all()):
        raise UserError("comparing models: scores are not finite; the weights are damaged, or overflow in fp16")
    counted_R5 = table_R5[table_R5[:, 0] > 0]
    interval = bootstrap_interval(counted_R5[:, 2] - counted_R5[:, 1], counted_R5[:, 0], seed=seed)
    return Comparison(
        positions=int(positions),
        rows=len(counted_R5),
        nll_original=before / positions,
        nll_quantized=after / positions,
        interval=interval,
        kl=max(0.0, kl / positions),
        agreement=equal / positions,
    )


def bootstrap_interval(sums_R: Tensor, counts_R: Tensor, *, seed: int = 0) -> tuple[float, float] | None:
    """Where the ratio sum(sums) / sum(counts) lies in 95 % of 2000 draws of R rows; None for fewer than two rows."""
    rows = len(sums_R)
    if rows < 2:
        return None
    drawn = torch.randint(rows, (DRAWS, rows), generator=torch.Generator().manual_seed(seed))
    sums, counts = (values.double().cpu()[drawn].sum(1) for values in (sums_R, counts_R))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(sums / counts, tails).tolist()
    return low, high


@torch.no_grad()
def weight_errors(original: Model, quantized: Model) -> dict[str, float]:
    """|W' - W| / |W| (Frobenius) of every packed matrix by its module's name.

    Not for models whose matrices were scaled before they were packed (AWQ): those differ on purpose.
    """
    errors: dict[str, float] = {}
    for name, module in quantized.named_modules():
        if isinstance(module, PackedMatrix):
            weight = original.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            difference = torch.linalg.vector_norm(unpack(module.matrix) - weight.float())
            errors[name] = float(difference / torch.linalg.vector_norm(weight.float()).clamp(min=1e-30))
    return errors


@dataclass(frozen=True)
class Likeness:
    """How alike the results of two models are that have no token scores."""

    error: float
    """|y' - y| / |y| over the results of all texts."""
    agreement: float | None
    """Share of the texts, or positions, that get the same class; None where there are no classes."""


@torch.no_grad()
def results_alike(
    original: Model, quantized: Model, batches: Sequence[Batch], *, progress: Progress = SILENT
) -> Likeness:
    """The heads' results of both models on the same text."""
    difference = total = 0.0
    same: list[Tensor] = []
    classes = original.config.head in ("classification", "token_classification") and len(original.config.labels) > 1
    progress.start("comparing with the original", total=len(batches), unit="batches")
    for batch in batches:
        arguments = (batch,) if isinstance(batch, Tensor) else batch
        expected, found = (_evaluated(model, model, arguments).double().cpu() for model in (original, quantized))
        difference += float((found - expected).square().sum())
        total += float(expected.square().sum())
        same.append((expected.argmax(-1) == found.argmax(-1)).flatten())
        progress.advance()
    progress.finish()
    agreement = float(torch.cat(same).double().mean()) if classes else None
    return Likeness((difference / max(total, 1e-300)) ** 0.5, agreement)


@torch.no_grad()
def part_errors(
    original: Model, quantized: Model, batches: Sequence[Batch], *, progress: Progress = SILENT
) -> list[PartError]:
    """The error of every block's attention, cross-attention and MLP; `batches` as in calibration."""
    errors: list[PartError] = []

    def treat(visit: Visit) -> None:
        other = quantized.get_submodule(visit.name)
        assert isinstance(other, Block)
        sums: dict[str, tuple[float, float]] = {}
        for state in visit.states:
            expected = _outputs(visit.block, state, visit.layer)
            found = _outputs(other, state.to(quantized.device, quantized.dtype), visit.layer)
            for part, y in expected.items():
                difference, total = sums.get(part, (0.0, 0.0))
                difference += float((found[part].double().to(y.device) - y.double()).square().sum())
                sums[part] = difference, total + float(y.double().square().sum())
        for part, (difference, total) in sums.items():
            errors.append(PartError(f"{visit.name}.{part}", (difference / max(total, 1e-300)) ** 0.5))

    visit_blocks(original, batches, treat, doing="comparing parts", progress=progress)
    return errors


def _outputs(block: Block, state: State, layer: int) -> dict[str, Tensor]:
    """What each part of the block writes when `state` enters it."""
    caught: dict[str, Tensor] = {}

    def catch(part: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            caught[part] = output

        return hook

    there = {part: getattr(block, part, None) for part in PARTS}
    handles = [module.register_forward_hook(catch(part)) for part, module in there.items() if module is not None]
    try:
        state.through(block, layer)
    finally:
        for handle in handles:
            handle.remove()
    return {part: caught[part] for part in PARTS if part in caught}


def _sums_of_rows(original: Model, quantized: Model, rows: ScoredRows, states_ND: Tensor) -> Tensor:
    """(B, 5) fp64 on the CPU, of each row: positions, both negative log-likelihoods, KL, equal likeliest tokens."""
    scored_BT = rows.targets_BT >= 0
    row_N, targets_N = scored_BT.nonzero()[:, 0], rows.targets_BT[scored_BT]
    states = [states_ND, scored_states(quantized, rows)]
    size = max(1, LOGITS_PER_CHUNK // original.config.vocab_size)
    sums_B5 = torch.zeros(len(scored_BT), 5, dtype=torch.float64)
    for start in range(0, len(targets_N), size):
        part = slice(start, start + size)
        p_NV, q_NV = (
            model.logits(hidden_ND[part]).float().log_softmax(-1)
            for model, hidden_ND in zip((original, quantized), states, strict=True)
        )
        q_NV = q_NV.to(p_NV.device)
        target_N1 = targets_N[part].to(p_NV.device)[:, None]
        columns = (
            torch.ones(len(target_N1), device=p_NV.device),
            -p_NV.gather(1, target_N1)[:, 0],
            -q_NV.gather(1, target_N1)[:, 0],
            torch.where(p_NV > -torch.inf, p_NV.exp() * (p_NV - q_NV), 0.0).sum(-1),
            p_NV.argmax(-1) == q_NV.argmax(-1),
        )
        values_N5 = torch.stack([column.double().cpu() for column in columns], 1)
        sums_B5.index_add_(0, row_N[part].cpu(), values_N5)
    return sums_B5


@torch.no_grad()
def scored_states(model: Model, rows: ScoredRows) -> Tensor:
    """(N, D): the hidden states at the scored positions, N in the order of the rows."""
    hidden_BTD = _evaluated(model, lambda *arguments: hidden_states(model, arguments), rows.inputs)
    return hidden_BTD[(rows.targets_BT >= 0).to(hidden_BTD.device)]


def _evaluated(model: Model, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """`run(*inputs)` on the model's device, with dropout off; modes are left as found."""
    modes = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return run(*(part.to(model.device) for part in inputs))
    finally:
        for module in modes:
            module.training = True


def hidden_states(model: Model, inputs: tuple[Tensor, ...]) -> Tensor:
    """(B, T, D): what stands before the head of a model of any kind, for the arguments of its `forward`."""
    if isinstance(model, Encoder):
        return model.hidden(*inputs)
    if isinstance(model, Decoder):
        return model.hidden(*inputs)[0]
    source_BS, ids_BT = inputs
    return model.hidden(ids_BT, memory=model.memory(model.encode(source_BS)))[0]
