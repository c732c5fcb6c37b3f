"""What the matrices of a model read while it reads real text: the statistics that calibrated rounding needs.

The model is taken through the text block by block. The hidden states that enter a block are kept for all of the text
(tokens x D numbers); a block is run on them as often as it has groups of matrices that read one input, each time only
as far as that input, which is summed into one Gram matrix and forgotten. When the block has been changed it is run
once more, so that the next one is calibrated on what it will really read: the output of blocks already quantized
(Frantar et al., 2022, section 4). Peak memory beside the model: the hidden states and one Gram matrix.

The encoder of an encoder-decoder comes first; the keys and values of its source are, for every decoder block, one more
group that reads the encoder's output.

Invariants its tests check: a Gram matrix is that of the inputs a hook on the whole model sees; visiting blocks without
changing them ends at the model's own hidden states; modes and weights are left as found.

Shapes: B rows, T positions, S positions of a source, D width, I inputs of a matrix, N tokens of all of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.attention import Shared, View
from trivium.models.build import Model
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.models.positions import Rotation
from trivium.models.transformer import Block, Stack
from trivium.progress import SILENT, Progress

Batch = Tensor | tuple[Tensor, ...]
"""Arguments of the model's `forward`: ids (B, T), of an encoder-decoder a source (B, S) and ids (B, T); no padding."""

# Names, within a block, of matrices that read the same input, in the order in which they read.
_GROUPS = (
    ("cross.key", "cross.value"),
    ("attention.query", "attention.key", "attention.value"),
    ("attention.output",),
    ("cross.query",),
    ("cross.output",),
    ("mlp.gate", "mlp.up"),
    ("mlp.down",),
)


@dataclass(frozen=True)
class Statistics:
    """Sums over all of the text of what one group of matrices reads, x (I,)."""

    gram: Tensor
    """(I, I) fp32: the sum of x x^T."""
    magnitude: Tensor
    """(I,) fp32: the mean of |x|."""
    count: int
    """How many x there were."""


class _Reached(Exception):
    """The place up to which a run was wanted; carries nothing."""


@dataclass(frozen=True)
class State:
    """What enters a block, of one batch."""

    x_BTD: Tensor
    shared: Shared
    source_BSD: Tensor | None
    """The encoder's output, which the blocks of an encoder-decoder's decoder also read."""

    def through(self, block: Block, layer: int) -> Tensor:
        """(B, T, D): the block's output."""
        shared = self.shared
        if block.cross is not None and self.source_BSD is not None:
            keys, values = block.cross.keys_values(self.source_BSD)
            shared = shared._replace(source_keys=keys.transpose(1, 2), source_values=values.transpose(1, 2))
        return block(self.x_BTD, shared, layer)  # type: ignore[no-any-return]

    def to(self, device: torch.device, dtype: torch.dtype) -> State:
        """The same for a block that computes in another place or type."""
        shared = Shared(*(_moved(value, device, dtype) for value in self.shared))
        source = None if self.source_BSD is None else self.source_BSD.to(device, dtype)
        return State(self.x_BTD.to(device, dtype), shared._replace(dtype=dtype), source)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor, or a named tuple of tensors and other values, in another place and type."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, View | Rotation):
        return type(value)(*(_moved(part, device, dtype) for part in value))
    return value


@dataclass(frozen=True)
class Visit:
    """One block, and the text on its way to it."""

    name: str
    """Where the block is in the model: `stack.blocks.0`."""
    block: Block
    layer: int
    states: Sequence[State]

    def groups(self) -> list[tuple[str, ...]]:
        """The block's matrices by what they read, in that order: names within the block."""
        known = dict(self.block.named_modules())
        groups = (tuple(name for name in group if isinstance(known.get(name), nn.Linear)) for group in _GROUPS)
        return [group for group in groups if group]

    def weight(self, name: str) -> Tensor:
        """The matrix of the block's module `name`."""
        linear = self.block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear.weight.detach()

    def statistics(self, group: tuple[str, ...]) -> Statistics:
        """Of what `group` reads in the block as it is now."""
        sums = _Sums()
        with _before(self.block.get_submodule(group[0]), sums.add):
            for state in self.states:
                _run_until_reached(lambda state=state: state.through(self.block, self.layer))  # type: ignore[misc]
        return sums.statistics()


def output_errors(difference: Tensor, gram: Tensor) -> Tensor:
    """(O,): the sum of (x d)^2 over all x, for each row d of `difference` (O, I) and the Gram matrix of x."""
    return ((difference @ gram) * difference).sum(1)


@torch.no_grad()
def visit_blocks(
    model: Model,
    batches: Sequence[Batch],
    treat: Callable[[Visit], None],
    *,
    doing: str = "calibrating",
    progress: Progress = SILENT,
) -> None:
    """Call `treat`, which may change it, with each block of the model and what enters it, from the first to the last.

    `doing` is what progress calls it.
    Raises UserError for batches that are empty or do not fit the model.
    """
    inputs = [(batch,) if isinstance(batch, Tensor) else batch for batch in batches]
    _refuse_unfit(model, inputs)
    inputs = [tuple(part.to(model.device) for part in batch) for batch in inputs]
    modes = [module for module in model.modules() if module.training]
    model.eval()
    stacks = [model.encoder, model.decoder] if isinstance(model, EncoderDecoder) else [model.stack]
    progress.start(doing, total=sum(len(stack.blocks) for stack in stacks), unit="blocks")
    try:
        if isinstance(model, EncoderDecoder):
            states = [_entering(model.encoder, lambda s=source: model.encode(s)) for source, _ in inputs]  # type: ignore[misc]
            sources = _through_stack(model.encoder, "encoder", states, treat, progress)
            states = [
                replace(_entering_decoder(model, source, ids), source_BSD=source)
                for source, (_, ids) in zip(sources, inputs, strict=True)
            ]
            _through_stack(model.decoder, "decoder", states, treat, progress)
        else:
            states = [_entering(model.stack, lambda ids=ids: model.hidden(ids)) for (ids,) in inputs]  # type: ignore[misc]
            _through_stack(model.stack, "stack", states, treat, progress)
    finally:
        for module in modes:
            module.training = True
    progress.finish()


def _refuse_unfit(model: Model, inputs: Sequence[tuple[Tensor, ...]]) -> None:
    wanted = 2 if isinstance(model, EncoderDecoder) else 1
    if not inputs or not all(part.numel() for batch in inputs for part in batch):
        raise UserError("calibration: no text was given; give batches of token ids")
    for number, batch in enumerate(inputs):
        if len(batch) != wanted or any(part.ndim != 2 for part in batch):
            what = "(source, ids)" if wanted == 2 else "ids"
            raise UserError(f"calibration: batch {number} must be {what} of shape (rows, positions)")
        if any(int(part.min()) < 0 or int(part.max()) >= model.config.vocab_size for part in batch):
            raise UserError(f"calibration: batch {number} holds ids outside of 0..{model.config.vocab_size - 1}")


def _through_stack(
    stack: Stack, name: str, states: list[State], treat: Callable[[Visit], None], progress: Progress
) -> list[Tensor]:
    """Visit the stack's blocks; the hidden states after its last norm. `states` is used up."""
    for layer, block in enumerate(stack.blocks):
        assert isinstance(block, Block)
        treat(Visit(f"{name}.blocks.{layer}", block, layer, states))
        for index, state in enumerate(states):
            states[index] = replace(state, x_BTD=state.through(block, layer))
        progress.advance()
    return [state.x_BTD if stack.norm is None else stack.norm(state.x_BTD) for state in states]


def _entering(stack: Stack, run: Callable[[], object]) -> State:
    """What enters the first block when `run` runs the model."""
    caught: list[State] = []

    def catch(x_BTD: Tensor, shared: Shared, layer: int) -> None:
        caught.append(State(x_BTD, shared, None))

    with _before(stack.blocks[0], catch):
        _run_until_reached(run)
    return caught[0]


def _entering_decoder(model: EncoderDecoder, source_BSD: Tensor, ids_BT: Tensor) -> State:
    memory = model.memory(source_BSD)
    state = _entering(model.decoder, lambda: model.hidden(ids_BT, memory=memory))
    # A block's own keys and values are computed anew in `through`, from matrices that may have changed.
    return replace(state, shared=state.shared._replace(source_keys=None, source_values=None))


@contextmanager
def _before(module: nn.Module, action: Callable[..., None]) -> Iterator[None]:
    """Inside, whatever enters `module` is given to `action`, and the run ends there."""

    def hook(_: nn.Module, arguments: tuple[object, ...]) -> None:
        action(*arguments)
        raise _Reached

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _run_until_reached(run: Callable[[], object]) -> None:
    try:
        run()
    except _Reached:
        return
    raise AssertionError("the module was not reached")


class _Sums:
    """Running sums of what a module reads."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.total: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        x_NI = x.reshape(-1, x.shape[-1]).float()
        if self.gram is None or self.total is None:
            self.gram = x_NI.new_zeros(x_NI.shape[1], x_NI.shape[1])
            self.total = x_NI.new_zeros(x_NI.shape[1])
        self.gram.addmm_(x_NI.t(), x_NI)
        self.total += x_NI.abs().sum(0)
        self.count += len(x_NI)

    def statistics(self) -> Statistics:
        assert self.gram is not None and self.total is not None
        if not bool(torch.isfinite(self.gram).all()):
            raise UserError("calibration: the model's hidden states are not finite; load it in fp32 or bf16")
        return Statistics(self.gram, self.total / self.count, self.count)
