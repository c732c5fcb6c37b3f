"""Chunked cross-entropy against torch's own: values, both gradients, precision, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from training.small import fails
from trivium.data.batch import IGNORED
from trivium.training import cross_entropy
from trivium.training.cross_entropy import chunked_cross_entropy

ROWS, POSITIONS, WIDTH, VOCABULARY = 3, 41, 16, 300


def inputs(dtype: torch.dtype, share_ignored: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets with some ignored; logits of a realistic spread."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, POSITIONS, WIDTH, dtype=dtype, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, generator=generator)
    targets = torch.randint(0, VOCABULARY, (ROWS, POSITIONS), generator=generator)
    targets[torch.rand(ROWS, POSITIONS, generator=generator) < share_ignored] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss by the book."""
    logits = F.linear(hidden, weight).reshape(-1, VOCABULARY)
    return F.cross_entropy(logits, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")


def assert_equal_to_plain(chunk: int, dtype: torch.dtype, tolerance: float, share_ignored: float = 0.3) -> None:
    hidden, weight, targets = inputs(dtype, share_ignored)
    expected = plain(hidden, weight, targets)
    grads = torch.autograd.grad(expected * 0.37, (hidden, weight))
    result = chunked_cross_entropy(hidden, weight, targets, chunk_tokens=chunk)
    got = torch.autograd.grad(result.sum * 0.37, (hidden, weight))
    assert result.count == int((targets != IGNORED).sum())
    assert abs(result.sum - expected) <= tolerance * abs(expected)
    for mine, theirs in zip(got, grads, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("chunk", [0, 1, 7, 64, 1000])
def test_equals_plain_in_fp64(chunk: int) -> None:
    assert_equal_to_plain(chunk, torch.float64, 1e-12)


@pytest.mark.parametrize("share_ignored", [0.0, 0.95])
def test_equals_plain_in_fp32_and_when_none_or_most_are_ignored(share_ignored: float) -> None:
    assert_equal_to_plain(16, torch.float32, 2e-6, share_ignored)
    assert_equal_to_plain(16, torch.float64, 1e-12, share_ignored)


def plain_with_everything(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Bias, capped logits and smoothed labels, by the book."""
    logits = 3.0 * (F.linear(hidden, weight, bias) / 3.0).tanh()
    return F.cross_entropy(
        logits.reshape(-1, VOCABULARY),
        targets.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def difference_with_everything(chunk: int, smoothing: float, bias_of_ours: float = 0.0) -> float:
    """Largest relative difference of loss and gradients, in fp64."""
    hidden, weight, targets = inputs(torch.float64)
    bias = torch.randn(VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    expected = plain_with_everything(hidden, weight, bias, targets, smoothing)
    result = chunked_cross_entropy(
        hidden, weight, targets, bias + bias_of_ours, 3.0, label_smoothing=smoothing, chunk_tokens=chunk
    )
    inputs_ = (hidden, weight, bias)
    pairs = zip(torch.autograd.grad(result.sum, inputs_), torch.autograd.grad(expected, inputs_), strict=True)
    errors = [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs]
    return max(abs((result.sum / expected).item() - 1), *errors)


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bias_cap_and_smoothing_equal_plain(chunk: int, smoothing: float) -> None:
    assert difference_with_everything(chunk, smoothing) <= 1e-12


def test_control_another_bias_is_caught() -> None:
    weights = torch.arange(VOCABULARY, dtype=torch.float64)
    assert difference_with_everything(7, 0.1, weights / VOCABULARY) > 1e-3  # type: ignore[arg-type]


def test_small_softmax_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "SOFTMAX_BYTES", 5 * VOCABULARY * 8)
    assert_equal_to_plain(13, torch.float64, 1e-12)


def test_control_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cross_entropy._gradient_of_logits

    def forgets_the_target(probabilities: Tensor, targets: Tensor, out: Tensor, smoothing: float) -> None:
        right(probabilities, (targets + 1) % VOCABULARY, out, smoothing)

    monkeypatch.setattr(cross_entropy, "_gradient_of_logits", forgets_the_target)
    assert fails(lambda: assert_equal_to_plain(16, torch.float64, 1e-12))


def test_nothing_to_learn_gives_zero() -> None:
    hidden, weight, targets = inputs(torch.float32, share_ignored=1.1)
    result = chunked_cross_entropy(hidden, weight, targets)
    result.sum.backward()
    assert result.count == 0 and result.sum == 0
    assert not hidden.grad.any() and not weight.grad.any()


def test_without_gradient_only_the_loss_is_computed() -> None:
    hidden, weight, targets = inputs(torch.float64)
    expected = plain(hidden, weight, targets)
    with torch.no_grad():
        result = chunked_cross_entropy(hidden, weight, targets, want_correct=True)
    assert torch.allclose(result.sum, expected, rtol=1e-12)
    learned = targets != IGNORED
    assert result.correct == (F.linear(hidden, weight).argmax(-1)[learned] == targets[learned]).sum()


def test_frozen_weight_and_frozen_hidden_states() -> None:
    hidden, weight, targets = inputs(torch.float64)
    expected = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    mine = chunked_cross_entropy(hidden, weight.detach(), targets, chunk_tokens=10).sum
    assert torch.allclose(torch.autograd.grad(mine, hidden)[0], expected[0], rtol=1e-10)
    mine = chunked_cross_entropy(hidden.detach(), weight, targets, chunk_tokens=10).sum
    assert torch.allclose(torch.autograd.grad(mine, weight)[0], expected[1], rtol=1e-10)


def test_tied_weight_gets_both_gradients() -> None:
    _, weight, targets = inputs(torch.float64, share_ignored=0.0)
    ids = targets.roll(1, dims=1)
    expected = torch.autograd.grad(plain(F.embedding(ids, weight), weight, targets), weight)[0]
    mine = chunked_cross_entropy(F.embedding(ids, weight), weight, targets, chunk_tokens=9).sum
    assert torch.allclose(torch.autograd.grad(mine, weight)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_close_to_the_truth_as_plain_autocast(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs(torch.float32)
    truth = torch.autograd.grad(plain(hidden.double(), weight.double(), targets), (hidden, weight))

    def errors(loss: Any) -> list[float]:
        with torch.autocast("cpu", dtype=dtype):
            total = loss()
        grads = torch.autograd.grad(total, (hidden, weight))
        assert all(grad.dtype == torch.float32 for grad in grads)
        return [float((grad - true).norm() / true.norm()) for grad, true in zip(grads, truth, strict=True)]

    theirs = errors(lambda: plain(hidden, weight, targets))
    mine = errors(lambda: chunked_cross_entropy(hidden, weight, targets, chunk_tokens=16).sum)
    assert all(a <= 1.2 * b for a, b in zip(mine, theirs, strict=True)), (mine, theirs)


def test_a_very_wrong_prediction_keeps_its_loss() -> None:
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    assert chunked_cross_entropy(hidden, weight, torch.tensor([1])).sum == 2000


def test_backward_twice_is_refused() -> None:
    hidden, weight, targets = inputs(torch.float32)
    loss = chunked_cross_entropy(hidden, weight, targets).sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    num_bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


def largest_tensor(loss: Any) -> int:
    with LargestTensor() as mode, torch.autocast("cpu", dtype=torch.bfloat16):
        loss().backward()
    return mode.num_bytes


def test_all_logits_never_exist() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 8, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (2048,), generator=generator)
    everything = 2048 * VOCABULARY * 4
    mine = largest_tensor(lambda: chunked_cross_entropy(hidden, weight, targets, chunk_tokens=128).sum)
    assert mine <= everything / 8
    # Control: the plain way makes what this check looks for.
    assert largest_tensor(lambda: plain(hidden, weight, targets)) >= everything
