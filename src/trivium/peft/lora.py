"""Low-rank adaptation: beside a frozen matrix W (out, in), a learned product B A of rank r.

LoRA (Hu et al., 2022, eq. 3): y = W x + s B A x with s = alpha / r; B is 0 at first, A uniform in +-1/sqrt(in).
rsLoRA (Kalajdzievski, 2023): s = alpha / sqrt(r). DoRA (Liu et al., 2024, eq. 5 and 11): each row of V = W + s B A is
brought to a learned length m, y = m / |V| (W x + s B A x), and |V| is taken for a constant in the backward pass; m is
|W| at first. Dropout acts on what enters the product; under DoRA W x is computed from x itself, dropped or not.

|V|^2 = |W|^2 + 2 s b . (A w) + s^2 b (A A^T) b for each row w of W and b of B, so V is never made: |W|^2 is computed
once, A W^T at each step, for which a packed W is unpacked. A row of W that is all zeros stays so. The product is
computed in fp32 (under autocast in its type), and the sum given in the type of W x.

Invariants the tests check: a fresh adapter changes nothing, to the bit; outputs, and weights after a training step, are
those of `peft`; merged equals unmerged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.errors import UserError
from trivium.peft.settings import DoraSettings, LowRankSettings, RsLoraSettings
from trivium.peft.targets import linear_targets, matches, value_for
from trivium.peft.wrapped import Matrix, Part, drawn_uniform, in_own_type


class LowRank(Part):
    """s B A beside a linear layer."""

    def __init__(self, a: nn.Parameter, outputs: int, scale: float, dropout: float) -> None:
        """`a`: (r, in)."""
        super().__init__()
        self.lora_a = a
        self.lora_b = nn.Parameter(torch.zeros(outputs, a.shape[0]))
        self.scale, self.dropout = scale, dropout

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = base(x)
        return (y + self.product(x)).to(y.dtype)

    def product(self, x: Tensor) -> Tensor:
        """s B A x, (..., out)."""
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        middle = F.linear(in_own_type(x, self.lora_a), self.lora_a)
        return F.linear(middle * self.scale, self.lora_b)

    def merged(self, matrix: Matrix) -> Matrix:
        """W + s B A."""
        weight, bias = matrix
        return weight + self.scale * (self.lora_b.to(weight.dtype) @ self.lora_a.to(weight.dtype)), bias

    def extra_repr(self) -> str:
        """Sizes and scale."""
        return f"rank={self.lora_a.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"


class Dora(LowRank):
    """The same with a learned length for each row."""

    def __init__(self, a: nn.Parameter, base: nn.Module, scale: float, dropout: float) -> None:
        super().__init__(a, base.out_features, scale, dropout)  # type: ignore[arg-type]
        self._squares: Tensor | None = None
        self.magnitude = nn.Parameter(self._squared_lengths(base).sqrt())

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = base(x)
        added = y + self.product(x)
        unscaled = added if base.bias is None else added - base.bias  # type: ignore[operator]
        # Written as a change of `added`, so that lengths which have not moved change nothing, to the bit.
        return (added + (self.magnitude / self._lengths(base) - 1) * unscaled).to(y.dtype)

    def merged(self, matrix: Matrix) -> Matrix:
        """m V / |V|; |V| is a constant here too."""
        direction, bias = super().merged(matrix)
        lengths = torch.linalg.vector_norm(direction.detach(), dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
        return (self.magnitude.to(direction.dtype) / lengths)[:, None] * direction, bias

    @torch.no_grad()
    def _lengths(self, base: nn.Module) -> Tensor:
        """|V| of each row, (out,)."""
        a, b, squares = self.lora_a, self.lora_b, self._squared_lengths(base)
        with torch.autocast(a.device.type, enabled=False):
            crossed = ((base.weight.to(a.dtype) @ a.T) * b).sum(1)  # type: ignore[operator]
            squares = squares + 2 * self.scale * crossed + self.scale**2 * ((b @ (a @ a.T)) * b).sum(1)
            return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()  # a row of zeros stays one

    @torch.no_grad()
    def _squared_lengths(self, base: nn.Module) -> Tensor:
        """|W|^2 of each row, (out,); computed once, since W is frozen."""
        if self._squares is None:
            self._squares = base.weight.to(self.lora_a.dtype).square().sum(1)  # type: ignore[operator]
        return self._squares

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Dora:
        """Where weights are moved or cast, what was computed from them is no more."""
        self._squares = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def parts(modules: Mapping[str, nn.Module], model: nn.Module, settings: LowRankSettings, seed: int) -> dict[str, Part]:
    """The parts of a new adapter for the `modules` of a model, by the names of the layers they are for."""
    names = linear_targets(model, settings.targets, "targets")
    _refuse_idle_patterns(settings, names)
    made: dict[str, Part] = {}
    for name in names:
        base = modules[name]
        rank, scale = rank_and_alpha(settings, name)[0], scale_of(settings, name)
        a = drawn_uniform(rank, base.in_features, seed, f"{name}.lora_a")  # type: ignore[arg-type]
        if isinstance(settings, DoraSettings):
            made[name] = Dora(a, base, scale, settings.dropout)
        else:
            made[name] = LowRank(a, base.out_features, scale, settings.dropout)  # type: ignore[arg-type]
    return made


def rank_and_alpha(settings: LowRankSettings, name: str) -> tuple[int, float]:
    """r and alpha of the layer `name`; an alpha that nobody gives is twice the layer's rank."""
    rank = value_for(name, settings.ranks, settings.rank)
    return rank, value_for(name, settings.alphas, settings.alpha if settings.alpha is not None else 2.0 * rank)


def scale_of(settings: LowRankSettings, name: str) -> float:
    """s of the layer `name`."""
    rank, alpha = rank_and_alpha(settings, name)
    return alpha / (rank**0.5 if isinstance(settings, RsLoraSettings) else rank)


def _refuse_idle_patterns(settings: LowRankSettings, names: list[str]) -> None:
    """UserError for ranks and alphas of layers that are no targets, and for ranks below 1."""
    for key, values in (("ranks", settings.ranks), ("alphas", settings.alphas)):
        for pattern, value in values.items():
            if not any(matches(pattern, name) for name in names):
                raise UserError(f"{key}: {pattern!r} matches none of the targets, which are like {names[0]}")
            if value <= 0:
                raise UserError(f"{key}: {pattern!r} is {value}: give a number above 0")
