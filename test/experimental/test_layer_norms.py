"""PFLayerNorm and CLayerNorm against torch's normalizations in float64, and their accuracy in other dtypes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchvision_layers.experimental import nn as enn

DIMS = [(1, 2, 3), (2, 3)]
each_dims = pytest.mark.parametrize("dims", DIMS, ids=["image", "channel"])
each_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
SHAPES = [(2, 6, 5, 7), (3, 6, 1, 2), (1, 6, 8, 8)]


def formula(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + eps).sqrt()


def randomized(layer: nn.Module) -> nn.Module:
    """Replaces scales of one and shifts of zero by random numbers."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


# Equivalence


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_layout
@each_dims
def test_they_equal_the_norms_of_torch(
    dims: tuple[int, ...], layout: torch.memory_format, shape: tuple[int, int, int, int]
) -> None:
    x = torch.randn(*shape, dtype=torch.float64) * 3 - 2
    groups = 1 if dims == (1, 2, 3) else 6
    affine = randomized(nn.GroupNorm(groups, 6, eps=0.1, dtype=torch.float64))
    plain: list[nn.Module] = [nn.GroupNorm(groups, 6, eps=0.1, affine=False)]
    if dims == (1, 2, 3):
        plain.append(nn.LayerNorm(shape[1:], eps=0.1, elementwise_affine=False))
    else:
        plain.append(nn.InstanceNorm2d(6, eps=0.1))
    pf, c = enn.PFLayerNorm(dims, eps=0.1), enn.CLayerNorm(6, dims, eps=0.1, dtype=torch.float64)
    c.load_state_dict(affine.state_dict())
    x_in_layout = x.to(memory_format=layout)
    for norm in plain:
        torch.testing.assert_close(pf(x_in_layout), norm(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(c(x_in_layout), affine(x), rtol=0, atol=1e-12)


@each_dims
def test_they_equal_the_formula(dims: tuple[int, ...]) -> None:
    """The variance is biased and epsilon is inside the root, also for strides of neither layout."""
    whole = torch.randn(3, 5, 9, 12, dtype=torch.float64)
    layer = randomized(enn.CLayerNorm(4, dims, eps=0.5, dtype=torch.float64))
    for x in (whole[:, 1:], whole[:, 1:, ::2, 1::3], whole[:, 1:].transpose(2, 3)):
        expected = np.empty(x.shape)
        for n, channel in np.ndindex(3, 4):
            image = x[n].numpy()
            part = image if dims == (1, 2, 3) else image[channel]
            expected[n, channel] = (image[channel] - part.mean()) / np.sqrt(part.var() + 0.5)
        plain = enn.PFLayerNorm(dims, eps=0.5)(x)
        torch.testing.assert_close(plain, torch.from_numpy(expected), rtol=0, atol=1e-12)
        scaled = expected * layer.weight.detach().numpy()[:, None, None]
        scaled += layer.bias.detach().numpy()[:, None, None]
        torch.testing.assert_close(layer(x).detach(), torch.from_numpy(scaled), rtol=0, atol=1e-12)


def test_invariance_to_scale_and_shift_of_an_image() -> None:
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    scaled = x * torch.tensor([0.5, 3.0, 100.0]).view(-1, 1, 1, 1) + torch.tensor([-7.0, 0.0, 9.0]).view(-1, 1, 1, 1)
    for dims in DIMS:
        layer = enn.PFLayerNorm(dims, eps=0.0)
        torch.testing.assert_close(layer(scaled), layer(x), rtol=0, atol=1e-12)


# Accuracy. On the CPU, torch's own kernel for channels_last keeps no correct digit of float32 values with mean 1e4 and
# standard deviation 4.

MOMENTS = [(0.0, 1.0), (1000.0, 4.0), (1e4, 4.0), (-1e4, 100.0)]
each_moments = pytest.mark.parametrize(("mean", "std"), MOMENTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def sample(mean: float, std: float, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    return (torch.randn(2, 8, 12, 10) * std + mean).to(dtype).to(memory_format=layout)


def tolerance(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A few roundings of the dtype, plus the digits that float32 loses to a mean many deviations away from 0."""
    images = x.detach().double()
    deviations = images.mean(dims, keepdim=True).abs() / (images.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    return 4 * (torch.finfo(x.dtype).eps + torch.finfo(torch.float32).eps * deviations)


@each_layout
@each_dims
@each_moments
@each_dtype
def test_large_means_cost_no_more_than_rounding(
    dtype: torch.dtype, mean: float, std: float, dims: tuple[int, ...], layout: torch.memory_format
) -> None:
    x = sample(mean, std, dtype, layout)
    expected = formula(x.double(), dims)
    for layer in (enn.PFLayerNorm(dims), enn.CLayerNorm(8, dims, dtype=dtype), enn.CLayerNorm(8, dims)):
        output = layer(x)
        assert output.dtype == dtype
        assert bool(((output.double() - expected).abs() <= tolerance(x, dims) * (1 + expected.abs())).all())


def errors_of_gradients(layer: nn.Module, x: Tensor, dims: tuple[int, ...]) -> list[float]:
    """Largest errors relative to the largest gradient for input, scale and shift, against the formula in float64."""
    x.requires_grad_()
    upstream = torch.randn(x.shape).to(x.dtype)
    layer(x).backward(upstream)
    tensors = [x, *layer.parameters()]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output = formula(exact[0], dims)
    if len(exact) == 3:
        output = output * exact[1].view(-1, 1, 1) + exact[2].view(-1, 1, 1)
    expected = torch.autograd.grad(output, exact, upstream.double())
    errors = []
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert tensor.grad is not None
        errors.append(float((tensor.grad.double() - gradient).abs().max() / gradient.abs().max()))
    return errors


@each_layout
@each_dims
@each_moments
@each_dtype
def test_gradients_are_accurate_for_large_means(
    dtype: torch.dtype, mean: float, std: float, dims: tuple[int, ...], layout: torch.memory_format
) -> None:
    """The parameters are float32, as under autocast."""
    x = sample(mean, std, dtype, layout)
    errors = errors_of_gradients(randomized(enn.CLayerNorm(8, dims)), x, dims)
    assert max(errors) < 2 * float(tolerance(x, dims).max())


@each_layout
@pytest.mark.parametrize(("dtype", "mean", "std"), [(torch.float16, 1e4, 4.0), (torch.bfloat16, -1e4, 100.0)], ids=str)
def test_gradients_are_accurate_in_half_precision(
    dtype: torch.dtype, mean: float, std: float, layout: torch.memory_format
) -> None:
    """With half-precision parameters, torch's own kernels lose the gradient even in contiguous memory."""
    x = sample(mean, std, dtype, layout)
    for dims in DIMS:
        for layer in (enn.PFLayerNorm(dims), randomized(enn.CLayerNorm(8, dims, dtype=dtype))):
            errors = errors_of_gradients(layer, x.clone(), dims)
            assert max(errors) < 2 * float(tolerance(x, dims).max())


@each_layout
@each_dims
def test_differences_that_overflow_the_dtype(dims: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.full((1, 8, 6, 6), 30000.0, dtype=torch.float16)
    x[:, :, 0] = -60000.0
    x = x.contiguous(memory_format=layout)
    expected = formula(x.double(), dims)
    for needs_gradient in (False, True):
        for layer in (enn.PFLayerNorm(dims), enn.CLayerNorm(8, dims), enn.CLayerNorm(8, dims, dtype=torch.float16)):
            output = layer(x.requires_grad_(needs_gradient))
            torch.testing.assert_close(output.double(), expected, rtol=2e-3, atol=2e-3)


@each_layout
def test_each_channel_may_have_its_own_large_mean(layout: torch.memory_format) -> None:
    x = (torch.randn(2, 8, 9, 7) * 4 + 1e4 * torch.linspace(-1, 1, 8).view(-1, 1, 1)).contiguous(memory_format=layout)
    expected = formula(x.double(), (2, 3))
    for layer in (enn.PFLayerNorm((2, 3)), enn.CLayerNorm(8, (2, 3))):
        torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=5e-3)
