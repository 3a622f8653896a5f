"""Observers of weights, with the steps and the bounds that the kernels of a backend need."""

import torch
import torch.ao.quantization as taoq
from torch import Tensor

from ...pairs import PairRange
from ...steps import SMALLEST_WEIGHT_STEP, with_one_step

__all__ = ["weight_observer"]


class _PairRange(PairRange, taoq.PerChannelMinMaxObserver):
    """For kernels of FBGEMM."""


class _AnyPairRange(_PairRange):
    """For kernels that may add any two weights."""

    any_order = True


class _BoundedSteps(taoq.MovingAveragePerChannelMinMaxObserver):
    """Keeps the steps of all channels near that of the largest, for qnnpack.

    Its biases are 32-bit integers, in steps of the input times those of the channel. If the weights of a channel are
    almost zero, as after pruning by the gains of batch norms, their own step would let the bias overflow. The bound
    applies to weights that are a thousandth of the largest.
    """

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # like torch itself
        scales, zero_points = super().calculate_qparams()
        largest = scales.max()
        largest = torch.where(largest > self.eps, largest, 1.0)  # all weights are zero
        return scales.maximum(largest * 2**-10), zero_points


def weight_observer(backend: str, is_qat: bool, per_channel: bool, any_order: bool = False) -> object:
    """One scale per channel, on x86 such that no sum of two products overflows.

    Without VNNI instructions x86 adds two eight-bit products in sixteen bits, which can overflow. torch prevents that
    by reducing activations to seven bits. Bounding pairs of weights prevents it too (255 * 128 < 2 ** 15), loses less,
    and keeps saturation at 255, which makes ReLU6 exact. The onednn backend assumes VNNI and needs neither.
    ``any_order`` bounds any two weights, not only those that FBGEMM adds. Unless ``per_channel``, all scales are equal.

    The range has as many steps below zero as above. torch's default has one more below, so the largest weight of each
    channel falls between two steps and is always rounded down, which shifts all outputs to one side.
    """
    shared: dict[str, object] = {"quant_min": -127, "quant_max": 127, "eps": SMALLEST_WEIGHT_STEP}
    shared |= {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}
    observer: type[taoq.ObserverBase]
    if backend == "x86":
        observer = _AnyPairRange if any_order else _PairRange
    elif backend == "qnnpack":
        observer = _BoundedSteps
    else:
        observer = taoq.MovingAveragePerChannelMinMaxObserver if is_qat else taoq.PerChannelMinMaxObserver
    if not per_channel:
        observer = with_one_step(observer)
    # Fake quantization that is not fused: the fused kernel trains with other steps than the conversion uses.
    if is_qat and backend != "x86":
        shared["averaging_constant"] = 1.0  # the range of the present weights, which is also that of the conversion
    return taoq.FakeQuantize.with_args(observer=observer, **shared) if is_qat else observer.with_args(**shared)
