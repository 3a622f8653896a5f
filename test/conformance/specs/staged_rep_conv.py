"""The re-parameterized convolution."""

from functools import partial

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from .. import staged_reference as staged
from . import invalid_inputs, staged_shape_strategies

__all__ = ["SPECS"]


def _choice(name: str, value: object, error: type[Exception], message: str) -> BadArguments:
    return BadArguments(InvalidInput.CHOICE, {name: value}, error, message)


SPECS = (
    LayerSpec(
        enn.RepConv,
        (
            Sample("repvgg", {"in_channels": 4, "out_channels": 4}, (2, 4, 7, 9), staged.rep_conv, reads_mode=True),
            Sample(
                "depthwise mobileone",
                {"in_channels": 4, "out_channels": 4, "kernel_size": 5, "groups": 4, "branches": 3}
                | {"activation_layer": nn.Hardswish, "se_layer": partial(tnn.SqueezeExcitation, squeeze_channels=2)},
                (2, 4, 6, 7),
                partial(staged.rep_conv, branches=3, kernel=(5, 5), groups=4, activation=ref.hard_swish),
                reads_mode=True,
            ),
            Sample(
                "strided without norm",
                {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "stride": 2, "dilation": (2, 1)}
                | {"groups": 2, "padding_mode": "reflect", "norm_layer": None, "activation_layer": None},
                (2, 4, 9, 11),
                partial(
                    staged.rep_conv,
                    kernel=(3, 5),
                    stride=2,
                    dilation=(2, 1),
                    groups=2,
                    border="reflect",
                    activation=ref.identity,
                ),
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("in_channels", "out_channels"),
            BadArguments(
                InvalidInput.GROUPS, {"groups": 3}, ValueError, "in_channels must be divisible by groups, got 4 and 3"
            ),
            BadArguments(InvalidInput.GROUPS, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
            BadArguments(InvalidInput.GROUPS, {"groups": 2.0}, TypeError, r"groups must be an int, got 2\.0"),
            *invalid_inputs.numbers_each(2, "kernel_size", "dilation"),
            *invalid_inputs.numbers("stride", "branches"),
            BadArguments(InvalidInput.WINDOW, {"stride": (2, 1)}, TypeError, r"stride must be an int, got \(2, 1\)"),
            BadArguments(InvalidInput.EVEN_KERNEL, {"kernel_size": 4}, ValueError, "kernel_size must be odd.*got 4"),
            BadArguments(
                InvalidInput.EVEN_KERNEL, {"kernel_size": (3, 2)}, ValueError, r"kernel_size must be odd.*got \(3, 2\)"
            ),
            _choice("padding_mode", "mirror", ValueError, "padding_mode must be one of zeros.*got 'mirror'"),
            _choice("pointwise", 1, TypeError, "pointwise must be True or False, got 1"),
            _choice("identity", None, TypeError, "identity must be True or False, got None"),
            *invalid_inputs.norms(4),
            *invalid_inputs.layers("activation_layer", "se_layer"),
            _choice("se_layer", tnn.SqueezeExcitation(77, 2), ValueError, "se_layer has input_channels=77, expected 4"),
        ),
        (
            *invalid_inputs.shapes(4, (7, 9)),
            *invalid_inputs.types_of_torch((2, 4, 7, 9)),
            *invalid_inputs.no_pixels(4),
        ),
        shape_strategy=staged_shape_strategies.rep_conv(),
    ),
)
