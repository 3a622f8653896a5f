"""Random dropping of residual branches."""

import torch
import torch.fx
import torchvision.ops
from torch import Tensor
from torchvision.ops import stochastic_depth

from .._utils.checks import check_floating, check_probability, is_tensor

__all__ = ["StochasticDepth"]

torch.fx.wrap("stochastic_depth")  # stays one node in a traced graph, as in torchvision's own layer


class StochasticDepth(torchvision.ops.StochasticDepth):
    r"""In training, zeroes a residual branch with probability ``p`` and scales it by :math:`1 / (1 - p)` otherwise.

    From `Deep Networks with Stochastic Depth <https://arxiv.org/abs/1603.09382>`_ (eq. 2), but with the scale applied
    in training, so that the layer is the identity in eval mode. The same as ``torchvision.ops.StochasticDepth``, with
    arguments checked at construction.

    Args:
        p: probability of dropping the branch, in [0, 1].
        mode: ``"batch"`` drops the branch for the whole batch, ``"row"`` independently for each sample.
        device: accepted for a uniform signature; the layer has no parameters.
        dtype: accepted for a uniform signature; the layer has no parameters.

    Errors: ``ValueError`` for ``p`` outside [0, 1], another mode, or an input without a batch dimension; ``TypeError``
    for an integer input.

    Shape: input and output are both :math:`(N, *)`.

    Examples::

        >>> tnn.StochasticDepth(0.2, "row").eval()(torch.ones(2, 3)).sum()
        tensor(6.)
    """

    def __init__(
        self,
        p: float,
        mode: str,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mode not in ("batch", "row"):
            raise ValueError(f"mode must be 'batch' or 'row', got {mode!r}")
        super().__init__(check_probability("p", p), mode)

    def forward(self, input: Tensor) -> Tensor:
        check_floating(input)  # also in eval mode, since training would fail later
        if is_tensor(input) and input.dim() == 0:
            raise ValueError("input must have at least 1 dimension, got 0")
        return stochastic_depth(input, self.p, self.mode, self.training)
