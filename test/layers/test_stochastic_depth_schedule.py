"""Rates of stochastic depth against those of torchvision's models."""

import pytest

from torchvision_layers import nn as tnn


def test_stochastic_depth_schedule() -> None:
    """As in torchvision's models: in proportion to the number of the block."""
    rates = tnn.stochastic_depth_schedule(0.2, (2, 2, 6, 2))
    assert [len(stage) for stage in rates] == [2, 2, 6, 2]
    assert [rate for stage in rates for rate in stage] == [0.2 * float(i) / 11 for i in range(12)]
    assert tnn.stochastic_depth_schedule(0.5, [1]) == [[0.0]]
    assert tnn.stochastic_depth_schedule(0.0, [1, 2]) == [[0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.5, [2]), ValueError, r"rate must be in \[0, 1\], got 1\.5"),
        (("0.1", [2]), TypeError, "rate must be a number, got '0.1'"),
        ((0.1, 4), TypeError, "depths must be a sequence of ints, got 4"),
        ((0.1, "22"), TypeError, "depths must be a sequence of ints, got '22'"),
        ((0.1, []), ValueError, "depths must have at least one stage, got none"),
        ((0.1, [2, 0]), ValueError, "depths must be at least 1, got 0"),
        ((0.1, [2.0]), TypeError, r"depths must be an int, got 2\.0"),
    ],
)
def test_wrong_schedules(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tnn.stochastic_depth_schedule(*arguments)
