"""How a step's rows are shared out."""

from __future__ import annotations

import itertools

from trivium.training.objective import first_row_of_rank


def test_shares_are_contiguous_complete_and_even() -> None:
    for rows in (1, 7, 8, 100):
        for world_size in (1, 2, 3, 8):
            bounds = [first_row_of_rank(rows, rank, world_size) for rank in range(world_size + 1)]
            assert bounds[0] == 0 and bounds[-1] == rows
            sizes = [b - a for a, b in itertools.pairwise(bounds)]
            assert max(sizes) - min(sizes) <= 1
