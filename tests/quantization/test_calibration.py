"""Statistics are those of what the whole model's matrices read; visiting changes nothing; bad text is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantization.calibrated import CONFIGS, model_of, results, text_of
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.quantization.calibration import Batch, Statistics, Visit, output_errors, visit_blocks

ALL = sorted(CONFIGS)


def hooked(model: Model, batches: list[Batch]) -> dict[str, Tensor]:
    """The Gram matrix of what every matrix of a block reads, by hooks on the whole model, fp64."""
    grams: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor]) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
            grams[name] = grams.get(name, 0) + x.t() @ x

        return hook

    handles = [
        module.register_forward_pre_hook(remember(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".blocks." in name
    ]
    results(model, batches)
    for handle in handles:
        handle.remove()
    return grams


def visited(model: Model, batches: list[Batch]) -> dict[str, Statistics]:
    """What `visit_blocks` finds, for every matrix."""
    found: dict[str, Statistics] = {}

    def treat(visit: Visit) -> None:
        for group in visit.groups():
            seen = visit.statistics(group)
            found.update({f"{visit.name}.{name}": seen for name in group})

    visit_blocks(model, batches, treat)
    return found


@pytest.mark.parametrize("name", ALL)
def test_statistics_are_those_of_the_whole_model(name: str) -> None:
    config = CONFIGS[name]
    model, batches = model_of(config), text_of(config)
    expected, found = hooked(model, batches), visited(model, batches)
    assert sorted(found) == sorted(expected)
    for matrix, gram in expected.items():
        assert torch.allclose(found[matrix].gram.double(), gram, rtol=1e-4, atol=1e-4 * float(gram.abs().max())), matrix
        assert found[matrix].count == 3 * 2 * 24
        assert bool((found[matrix].magnitude > 0).any())


def test_a_block_is_read_as_it_is_after_the_one_before_it_was_changed() -> None:
    config = CONFIGS["llama"]
    model, batches = model_of(config), text_of(config)
    grams: list[Tensor] = []

    def treat(visit: Visit) -> None:
        grams.append(visit.statistics(("mlp.down",)).gram)
        visit.block.mlp.down.weight.data *= 0.5

    visit_blocks(model, batches, treat)
    # The model as it is now: every `down` was halved after its own input had been read.
    expected = hooked(model, batches)
    for layer, gram in enumerate(grams):
        assert torch.allclose(gram.double(), expected[f"stack.blocks.{layer}.mlp.down"], rtol=1e-3, atol=1e-3)
    # Broken control: statistics of the model as it was before are others.
    before = hooked(model_of(config), batches)["stack.blocks.1.mlp.down"]
    assert not torch.allclose(grams[1].double(), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "encoder, post-norm", "encoder-decoder"])
def test_visiting_changes_nothing(name: str) -> None:
    config = CONFIGS[name]
    model, batches = model_of(config), text_of(config)
    model.train()
    model.head.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    visit_blocks(model, batches, lambda visit: None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not model.head.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_output_errors_are_sums_of_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x, difference = torch.randn(50, 7, generator=generator).double(), torch.randn(3, 7, generator=generator).double()
    expected = (x @ difference.t()).square().sum(0)
    assert torch.allclose(output_errors(difference, x.t() @ x), expected)


def test_unfit_text_is_refused() -> None:
    model = model_of(CONFIGS["llama"])
    two = model_of(CONFIGS["encoder-decoder"])

    def nothing(visit: Visit) -> None:
        raise AssertionError("no block may be visited")

    for unfit, batches, words in (
        (model, [], "no text"),
        (model, [torch.zeros(2, 0, dtype=torch.long)], "no text"),
        (model, [torch.zeros(5, dtype=torch.long)], "batch 0 must be ids"),
        (model, [torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), 61)], "batch 1 holds ids outside of 0..60"),
        (two, [torch.zeros(1, 4, dtype=torch.long)], "batch 0 must be (source, ids)"),
    ):
        with pytest.raises(UserError) as caught:
            visit_blocks(unfit, batches, nothing)
        assert words in str(caught.value)


def test_hidden_states_that_are_not_finite_are_refused() -> None:
    config = CONFIGS["llama"]
    model = model_of(config)
    model.stack.blocks[0].mlp.up.weight.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        visited(model, text_of(config))
