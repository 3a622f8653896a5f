"""Arguments and inputs that many layers must reject with the same messages."""

import torch
from torch import nn

from torchvision_layers.testing import BadArguments, BadInput, InvalidInput

NAN = float("nan")


def channels(*names: str) -> tuple[BadArguments, ...]:
    return tuple(
        bad
        for name in names
        for bad in (
            BadArguments(InvalidInput.CHANNELS, {name: 0}, ValueError, f"{name} must be at least 1, got 0"),
            BadArguments(InvalidInput.CHANNELS, {name: -8}, ValueError, f"{name} must be at least 1, got -8"),
            BadArguments(InvalidInput.CHANNELS, {name: 3.0}, TypeError, rf"{name} must be an int, got 3\.0"),
        )
    )


def probability(name: str) -> tuple[BadArguments, ...]:
    return (
        BadArguments(InvalidInput.PROBABILITY, {name: 1.5}, ValueError, rf"{name} must be in \[0, 1\], got 1\.5"),
        BadArguments(InvalidInput.PROBABILITY, {name: -0.1}, ValueError, rf"{name} must be in \[0, 1\], got -0\.1"),
        BadArguments(InvalidInput.PROBABILITY, {name: NAN}, ValueError, rf"{name} must be in \[0, 1\], got nan"),
        BadArguments(InvalidInput.PROBABILITY, {name: "half"}, TypeError, f"{name} must be a number, got 'half'"),
    )


def kept_rows(channels: int) -> tuple[BadInput, ...]:
    """Inputs of blocks that would normalize the kept samples with their own statistics."""
    return tuple(
        BadInput(
            InvalidInput.PROBABILITY,
            (2, channels, 6, 7),
            ValueError,
            "kept_rows_only must be False for a branch with batch statistics.*got BatchNorm2d in training mode",
            {"stochastic_depth": rate, "kept_rows_only": True, "norm_layer": nn.BatchNorm2d},
            training=True,
        )
        for rate in (0.2, 1.0)
    )


def stochastic_depth() -> tuple[BadArguments, ...]:
    wrong = "kept_rows_only must be True or False, got 1"
    return (
        *probability("stochastic_depth"),
        BadArguments(InvalidInput.CHOICE, {"kept_rows_only": 1}, TypeError, wrong),
    )


def eps() -> tuple[BadArguments, ...]:
    return (
        BadArguments(InvalidInput.EPS, {"eps": -1.0}, ValueError, r"eps must be finite and not negative, got -1\.0"),
        BadArguments(InvalidInput.EPS, {"eps": NAN}, ValueError, "eps must be finite and not negative, got nan"),
        BadArguments(
            InvalidInput.EPS, {"eps": float("inf")}, ValueError, "eps must be finite and not negative, got inf"
        ),
        BadArguments(InvalidInput.EPS, {"eps": "small"}, TypeError, "eps must be a number, got 'small'"),
        BadArguments(InvalidInput.EPS, {"eps": True}, TypeError, "eps must be a number, got True"),
    )


def numbers(*names: str) -> tuple[BadArguments, ...]:
    """Window arguments that take one integer."""
    return tuple(
        bad
        for name in names
        for bad in (
            BadArguments(InvalidInput.WINDOW, {name: 0}, ValueError, f"{name} must be at least 1, got 0"),
            BadArguments(InvalidInput.WINDOW, {name: -1}, ValueError, f"{name} must be at least 1, got -1"),
            BadArguments(InvalidInput.WINDOW, {name: 3.0}, TypeError, rf"{name} must be an int, got 3\.0"),
            BadArguments(InvalidInput.WINDOW, {name: True}, TypeError, f"{name} must be an int, got True"),
        )
    )


def numbers_each(dims: int, *names: str) -> tuple[BadArguments, ...]:
    """Window arguments that take one integer, or one for each dimension."""
    too_many = (3,) * (dims + 1)
    return numbers(*names) + tuple(
        bad
        for name in names
        for bad in (
            BadArguments(
                InvalidInput.WINDOW,
                {name: too_many},
                ValueError,
                rf"{name} must be an int or a tuple of length {dims}, got \(3, 3",
            ),
            BadArguments(InvalidInput.WINDOW, {name: (0,) * dims}, ValueError, f"{name} must be at least 1, got 0"),
        )
    )


def layers(*names: str) -> tuple[BadArguments, ...]:
    """Layer arguments that are not constructors of layers."""
    return tuple(
        bad
        for name in names
        for bad in (
            BadArguments(InvalidInput.CHOICE, {name: "relu"}, TypeError, f"{name} must be a constructor.*'relu'"),
            BadArguments(InvalidInput.CHOICE, {name: int}, TypeError, f"{name} must be a constructor.*int"),
        )
    )


def norms(channels: int) -> tuple[BadArguments, ...]:
    """``norm_layer`` with a wrong number of channels, or that does not return a normalization."""

    def other(layer: object, error: type[Exception], message: str) -> BadArguments:
        return BadArguments(InvalidInput.CHOICE, {"norm_layer": layer}, error, message)

    return (
        *layers("norm_layer"),
        other(nn.BatchNorm2d(77), ValueError, f"norm_layer has num_features=77, expected {channels}"),
        other(nn.GroupNorm(1, 77), ValueError, f"norm_layer has num_channels=77, expected {channels}"),
        other(nn.LayerNorm(77), ValueError, rf"norm_layer has normalized_shape=\(77,\), expected \({channels},\)"),
        other(nn.LazyBatchNorm2d, TypeError, "norm_layer must not be lazy.*got LazyBatchNorm2d"),
        other(lambda channels: channels, TypeError, "norm_layer must return a module, got int"),
        other(nn.ReLU, TypeError, "norm_layer must return a normalization, got the activation ReLU"),
    )


def shapes(channels: int, image: tuple[int, ...]) -> tuple[BadInput, ...]:
    """Inputs with wrong dimensions or channels for (N, channels, *image), and objects that are not tensors."""
    dims = len(image) + 2
    return (
        BadInput(
            InvalidInput.RANK,
            (channels, *image),
            ValueError,
            f"input must have {dims} dimensions, got {dims - 1}: shape",
        ),
        BadInput(
            InvalidInput.RANK,
            (1, 2, channels, *image),
            ValueError,
            f"must have {dims} dimensions, got {dims + 1}: shape",
        ),
        BadInput(InvalidInput.WIDTH, (2, 1, *image), ValueError, f"input must have {channels} channels, got 1: shape"),
        BadInput(
            InvalidInput.WIDTH,
            (2, channels + 1, *image),
            ValueError,
            f"input must have {channels} channels, got {channels + 1}",
        ),
        *no_tensors(),
    )


def no_tensors() -> tuple[BadInput, ...]:
    return (
        BadInput(InvalidInput.DTYPE, None, TypeError, "input must be a Tensor, got NoneType"),
        BadInput(InvalidInput.DTYPE, [[1.0, 2.0]], TypeError, "input must be a Tensor, got list"),
    )


def types_of_torch(shape: tuple[int, ...]) -> tuple[BadInput, ...]:
    """Dtypes that torch's convolutions and linear layers reject, with messages that name both."""
    return (
        BadInput(
            InvalidInput.DTYPE, torch.zeros(shape, dtype=torch.uint8), RuntimeError, r"(Byte|unsigned char).*[Ff]loat\b"
        ),
        BadInput(InvalidInput.DTYPE, torch.zeros(shape, dtype=torch.float64), RuntimeError, r"[Dd]ouble.*[Ff]loat\b"),
    )


def types(shape: tuple[int, ...]) -> tuple[BadInput, ...]:
    """Dtypes that a layer must reject instead of promoting, in training and in eval mode."""
    return tuple(
        BadInput(
            InvalidInput.DTYPE,
            torch.zeros(shape, dtype=dtype),
            TypeError,
            f"input must have the dtype of the layer, torch.float32, got {dtype}",
            training=training,
        )
        for dtype in (torch.uint8, torch.bool, torch.float64, torch.complex64)
        for training in (False, True)
    )


def not_floating(shape: tuple[int, ...]) -> tuple[BadInput, ...]:
    """Dtypes that a layer without parameters must reject."""
    return tuple(
        BadInput(
            InvalidInput.DTYPE,
            torch.zeros(shape, dtype=dtype),
            TypeError,
            f"input must have a floating-point dtype, got {dtype}",
        )
        for dtype in (torch.uint8, torch.bool, torch.complex64)
    )


def no_pixels(channels: int, dims: int = 2) -> tuple[BadInput, ...]:
    """Images that a convolution rejects, and one value per channel for a batch norm in training."""
    return (
        BadInput(
            InvalidInput.NO_PIXELS,
            (2, channels, *(0, 7, 6)[:dims]),
            RuntimeError,
            "Kernel size can't be greater than actual input size",
        ),
        BadInput(
            InvalidInput.NO_PIXELS,
            (1, channels) + (1,) * dims,
            ValueError,
            "Expected more than 1 value per channel when training",
            training=True,
        ),
    )


def unpadded(
    in_channels: int, out_channels: int, kernel_size: tuple, stride: tuple, padding: tuple, **others: object
) -> nn.Conv2d:
    """A constructor of convolutions that ignores the padding."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, 0, **others)
