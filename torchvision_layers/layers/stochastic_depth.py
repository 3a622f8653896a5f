"""Random dropping of residual branches."""

from collections.abc import Callable, Iterable

import torch
import torch.fx
import torchvision.ops
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import stochastic_depth

from .._utils.checks import check_bool, check_floating, check_probability, is_tensor

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
        kept_rows_only: lets :meth:`run_branch` leave out the dropped samples; needs ``mode="row"``. Default: ``False``.
        device: accepted for a uniform signature; the layer has no parameters.
        dtype: accepted for a uniform signature; the layer has no parameters.

    Errors: ``ValueError`` for ``p`` outside [0, 1], another mode, ``kept_rows_only`` in mode ``"batch"``, or an input
    without a batch dimension; ``TypeError`` for an integer input.

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
        kept_rows_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mode not in ("batch", "row"):
            raise ValueError(f"mode must be 'batch' or 'row', got {mode!r}")
        if check_bool("kept_rows_only", kept_rows_only) and mode != "row":
            raise ValueError(f"kept_rows_only needs mode='row', got {mode!r}")
        super().__init__(check_probability("p", p), mode)
        self.kept_rows_only = kept_rows_only

    def forward(self, input: Tensor) -> Tensor:
        check_floating(input)  # also in eval mode, since training would fail later
        if is_tensor(input) and input.dim() == 0:
            raise ValueError("input must have at least 1 dimension, got 0")
        return stochastic_depth(input, self.p, self.mode, self.training)

    def run_branch(self, branch: Callable[[Tensor], Tensor], input: Tensor, layers: Iterable[nn.Module]) -> Tensor:
        """The same as ``self(branch(input))``, without the work for dropped samples if ``kept_rows_only`` is set.

        As in `DINOv2 <https://arxiv.org/abs/2304.07193>`_ (section 5), training computes the branch of the kept samples
        alone. Each sample is dropped independently, as in the plain form, and with the same seed the same ones are;
        DINOv2 keeps a fixed number instead. A block calls it in its ``forward``, which TorchScript must not compile::

            if not torch.jit.is_scripting():
                drop = self.stochastic_depth
                if isinstance(drop, StochasticDepth) and drop.kept_rows_only:
                    return x + drop.run_branch(self._branch, x, [self.norm, self.mlp])

        Reading which samples are kept waits for the device. In eval mode, in traces, on tensors without values and in
        compiled or exported programs, whose shapes cannot depend on random numbers, the plain form runs.

        Args:
            branch: maps tensors :math:`(N, *)` to tensors :math:`(N, *)`, each row by itself.
            input: the input of the branch.
            layers: modules that ``branch`` runs.

        Errors: ``ValueError`` if ``layers`` contain a batch norm that would use the statistics of the kept samples.
        """
        is_plain = not self.kept_rows_only or not self.training or self.p == 0.0
        if is_plain or torch.compiler.is_compiling() or not is_tensor(input) or not _has_values(input):
            return self(branch(input))
        _check_no_batch_statistics(layers)
        scale = stochastic_depth(input.new_ones(len(input)), self.p, "row", training=True)
        rows = scale.nonzero().flatten()
        if len(rows) == 0:  # one row, times zero, gives every parameter a gradient, as distributed training requires
            rows = rows.new_zeros(min(1, len(input)))
        kept = branch(_select(input, rows))
        kept = kept * scale[rows].to(kept.dtype).reshape([-1] + [1] * (kept.dim() - 1))
        output = torch.empty((len(input), *kept.shape[1:]), dtype=kept.dtype, device=kept.device)
        if _is_channels_last(kept):
            output = output.to(memory_format=torch.channels_last)
        return output.zero_().index_copy_(0, rows, kept)


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def _check_no_batch_statistics(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    "kept_rows_only must be False for a branch with batch statistics, which would be those of the kept "
                    f"samples, got {type(module).__name__} in training mode: use nn.GroupNorm or FrozenBatchNorm2d"
                )


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _select(input: Tensor, rows: Tensor) -> Tensor:
    if _is_channels_last(input):  # index_select would return another memory format
        return input.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return input.index_select(0, rows)
