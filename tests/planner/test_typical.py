"""A typical model has about as many parameters as were asked for."""

from __future__ import annotations

import pytest

from trivium.errors import UserError
from trivium.models.counts import num_parameters
from trivium.planner.typical import typical_shape


@pytest.mark.parametrize("parameters", [2e7, 4.5e7, 1e8, 3e8, 1e9, 1.7e9, 6.7e9, 1.3e10, 7e10, 4e11, 2e12])
def test_sizes_are_met(parameters: float) -> None:
    assert num_parameters(typical_shape(parameters)) == pytest.approx(parameters, rel=0.1)


def test_llama_2_itself() -> None:
    seven = typical_shape(6.738e9)
    assert (seven.width, seven.layers, seven.heads) == (4096, 32, 32)
    assert num_parameters(seven) == pytest.approx(6_738_415_616, rel=0.01)


@pytest.mark.parametrize("parameters", [1, 1e5, 1e18])
def test_what_has_no_usual_shape_is_refused(parameters: float) -> None:
    with pytest.raises(UserError, match="no usual shape has so many"):
        typical_shape(parameters)
