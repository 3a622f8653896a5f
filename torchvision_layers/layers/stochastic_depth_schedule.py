"""Rates of stochastic depth for the blocks of a model."""

from collections.abc import Sequence

from .._utils.checks import check_int, check_probability

__all__ = ["stochastic_depth_schedule"]


def stochastic_depth_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    r"""Rates that increase linearly from 0 for the first block of a model to ``rate`` for the last one.

    Block :math:`l` of :math:`L`, counted from 0 over all stages, is dropped with probability
    :math:`\frac{l}{L - 1} p_L`: the linear decay of `Deep Networks with Stochastic Depth
    <https://arxiv.org/abs/1603.09382>`_ (eq. 4), from 0 as in the models of torchvision and timm. A single
    block gets 0.

    Args:
        rate: probability :math:`p_L` of dropping the last block, in [0, 1].
        depths: number of blocks in each stage.

    Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a number out of range, or no stages.

    Returns a list of rates for each stage.

    Examples::

        >>> tnn.stochastic_depth_schedule(0.2, [2, 3])
        [[0.0, 0.05], [0.1, 0.15000000000000002, 0.2]]
    """
    check_probability("rate", rate)
    if isinstance(depths, str) or not isinstance(depths, Sequence):
        raise TypeError(f"depths must be a sequence of ints, got {depths!r}")
    if not depths:
        raise ValueError("depths must have at least one stage, got none")
    for depth in depths:
        check_int("depths", depth)
    last = max(1, sum(depths) - 1)
    return [
        [rate * index / last for index in range(sum(depths[:stage]), sum(depths[: stage + 1]))]
        for stage in range(len(depths))
    ]
