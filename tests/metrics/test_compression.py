"""The two baselines: unigram entropy in closed form, and the size that xz itself reaches."""

from __future__ import annotations

import math
import random
import shutil
import subprocess

import pytest

from trivium.errors import UserError
from trivium.metrics.compression import unigram_bits_per_byte, xz_bits_per_byte


def test_unigram_entropy_in_closed_form() -> None:
    assert unigram_bits_per_byte([4, 4, 4, 4], num_bytes=32) == pytest.approx(1.0)  # 16 tokens of 2 bits
    assert unigram_bits_per_byte([1, 0, 1, 2], num_bytes=4) == pytest.approx(1.5)
    assert unigram_bits_per_byte([9], num_bytes=9) == 0.0


def test_no_context_free_model_beats_the_unigram_entropy() -> None:
    """Gibbs: scoring the text with any other distribution over tokens costs more."""
    rng = random.Random(0)
    counts = [rng.randrange(1, 100) for _ in range(50)]
    entropy = unigram_bits_per_byte(counts, num_bytes=sum(counts))
    for _ in range(100):
        weights = [count * rng.uniform(0.9, 1.1) for count in counts]
        bits = -sum(c * math.log2(w / sum(weights)) for c, w in zip(counts, weights, strict=True))
        assert bits / sum(counts) > entropy


@pytest.mark.parametrize("extreme", [False, True])
def test_same_size_as_the_xz_program(extreme: bool) -> None:
    if (xz := shutil.which("xz")) is None:
        pytest.skip("needs the xz program")
    data = b"".join(b"the %d-th line, and %d\n" % (i, i * i % 97) for i in range(5000))
    done = subprocess.run([xz, "-9e" if extreme else "-9", "-T1"], input=data, stdout=subprocess.PIPE, check=True)
    assert xz_bits_per_byte(data, extreme=extreme) == pytest.approx(8 * len(done.stdout) / len(data), rel=1e-3)


def test_random_bytes_do_not_compress() -> None:
    assert xz_bits_per_byte(random.Random(0).randbytes(20_000)) >= 8.0


def test_refuses_the_empty_text() -> None:
    with pytest.raises(UserError, match="empty"):
        unigram_bits_per_byte([0, 0], num_bytes=3)
    with pytest.raises(UserError, match="empty"):
        xz_bits_per_byte(b"")
