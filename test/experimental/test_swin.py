"""Layers of Swin Transformers against torchvision's, and the claims of both papers."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import swin_transformer

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

BLOCKS = {1: swin_transformer.SwinTransformerBlock, 2: swin_transformer.SwinTransformerBlockV2}
MERGINGS = {1: swin_transformer.PatchMerging, 2: swin_transformer.PatchMergingV2}
# Multiples of the window, others, one window in one dimension or in both, and a single pixel.
IMAGES = [(6, 10), (7, 9), (20, 3), (2, 11), (3, 5), (1, 1)]
each_version = pytest.mark.parametrize("version", [1, 2])


def stirred(module: nn.Module) -> nn.Module:
    """Every parameter differs from its initial value, the bias of keys too, which is not used."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def assert_equals(ours: nn.Module, theirs: nn.Module, image: tuple[int, int]) -> None:
    """Outputs bit for bit, for both layouts, and gradients up to rounding."""
    pixels = torch.randn(2, *image, 12)
    expected = theirs(pixels)
    for x in (pixels.permute(0, 3, 1, 2), pixels.permute(0, 3, 1, 2).contiguous()):
        assert torch.equal(ours(x).permute(0, 2, 3, 1), expected)
    loss, other = ours(pixels.permute(0, 3, 1, 2)).square().sum(), expected.square().sum()
    gradients = torch.autograd.grad(loss, [*ours.parameters()])
    for got, want in zip(gradients, torch.autograd.grad(other, [*theirs.parameters()]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@each_version
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("shift", [[0, 0], [1, 2]], ids=str)
def test_blocks_equal_torchvision(version: int, image: tuple[int, int], shift: list[int]) -> None:
    theirs = stirred(BLOCKS[version](12, 3, [3, 5], shift)).eval()
    ours = enn.SwinBlock(12, 3, (3, 5), tuple(shift), version=version).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_equals(ours, theirs, image)


@each_version
@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_patch_merging_equals_torchvision(version: int, image: tuple[int, int]) -> None:
    theirs, ours = stirred(MERGINGS[version](12)), enn.PatchMerging(12, version=version)
    state = theirs.state_dict()
    ours.load_state_dict(state, strict=True)
    assert "reduction.weight" in state  # loading does not change the checkpoint
    assert_equals(ours, theirs, image)


def test_patch_merging_loads_torchvision_keys_inside_a_model() -> None:
    theirs, ours = nn.Sequential(MERGINGS[1](4)), nn.Sequential(enn.PatchMerging(4))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours[0].linear.weight, theirs[0].reduction.weight)
    ours.load_state_dict(ours.state_dict(), strict=True)


def seen(layer: nn.Module, row: int, column: int, size: int = 8) -> Tensor:
    """The pixels with a gradient from one output pixel."""
    image = torch.randn(1, 4, size, size, dtype=torch.float64, requires_grad=True)
    layer.double()(image)[0, 0, row, column].backward()  # the sum of normalized channels would be constant
    assert image.grad is not None
    return image.grad[0].abs().sum(0) > 1e-30


@each_version
def test_pixels_see_their_window(version: int) -> None:
    pixels = seen(enn.WindowAttention(4, 2, 4, version=version), 1, 6)
    assert pixels[:4, 4:].all()
    assert pixels.sum() == 16


@each_version
def test_shifted_windows_do_not_cross_the_border(version: int) -> None:
    """Figure 4 of arXiv 2103.14030: the window of the corner has four parts."""
    layer = enn.WindowAttention(4, 2, 4, shift_size=2, version=version)
    inside = seen(layer, 3, 4)
    assert inside[2:6, 2:6].all()
    assert inside.sum() == 16
    for row, column in product((0, 7), (0, 7)):
        corner = seen(layer, row, column)
        part = corner[slice(0, 2) if row == 0 else slice(6, 8), slice(0, 2) if column == 0 else slice(6, 8)]
        assert part.all()
        assert corner.sum() == 4


@each_version
def test_shifted_windows_connect_neighbouring_windows(version: int) -> None:
    """Section 3.2: two blocks without a shift see one window, a shifted block adds its neighbours."""
    plain = nn.Sequential(*(enn.SwinBlock(4, 2, 4, shift, version=version) for shift in (0, 0)))
    shifted = nn.Sequential(*(enn.SwinBlock(4, 2, 4, shift, version=version) for shift in (0, 2)))
    assert seen(plain, 3, 3).sum() == 16
    assert seen(shifted, 3, 3).all()


def test_cost_is_linear_in_the_number_of_pixels() -> None:
    """Eq. 2 of arXiv 2103.14030: 4hwC² + 2M²hwC multiply-adds; and no tensor grows faster than the image."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            if isinstance(output, Tensor):
                self.numel = max(self.numel, output.numel())
            return output

    layer = enn.WindowAttention(8, 2, 4, shift_size=2)
    largest = []
    for height, width in ((8, 16), (32, 64)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, 8, height, width))
        pixels = height * width
        assert counter.get_total_flops() == 2 * (4 * pixels * 8**2 + 2 * 4**2 * pixels * 8)
        with torch.no_grad(), Largest() as mode:
            layer(torch.randn(1, 8, height, width))
        largest.append(mode.numel)
    assert largest[1] == 16 * largest[0]


def test_attention_moves_with_the_image_by_whole_windows() -> None:
    layer, x = enn.WindowAttention(4, 2, (3, 5)), torch.randn(1, 4, 9, 10)
    torch.testing.assert_close(layer(x.roll((3, 5), (2, 3))), layer(x).roll((3, 5), (2, 3)))


def test_version_2_does_not_depend_on_the_length_of_queries_and_keys() -> None:
    """Section 3.2 of arXiv 2111.09883: cosines are normalized, which keeps single pixels from dominating."""
    layer, x = enn.WindowAttention(8, 2, 4, version=2, qkv_bias=False), torch.randn(1, 8, 8, 8)
    expected = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 50
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_version_2_bounds_the_scale_of_logits() -> None:
    layer, x = enn.WindowAttention(8, 2, 4, version=2), torch.randn(1, 8, 8, 8)
    outputs = []
    for scale in (100.0, 1e6):
        nn.init.constant_(layer.logit_scale, torch.tensor(scale).log().item())
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs)


def test_version_2_transfers_its_position_bias_to_other_windows() -> None:
    """Section 3.3: the same network gives the bias of a larger window, with equal offsets at the same place."""
    small, large = enn.WindowAttention(8, 2, 5, version=2), enn.WindowAttention(8, 2, 9, version=2)
    large.cpb_mlp.load_state_dict(small.cpb_mlp.state_dict())
    bias = small.position_bias()[0].view(2, 25, 25), large.position_bias()[0].view(2, 81, 81)
    # Opposite corners of both windows, and a pixel with itself.
    for few, many in (((0, 24), (0, 80)), ((4, 20), (8, 72)), ((12, 12), (40, 40))):
        torch.testing.assert_close(bias[0][:, few[0], few[1]], bias[1][:, many[0], many[1]])
    assert {name for name, _ in large.named_parameters()} == {name for name, _ in small.named_parameters()}
    assert all(p.shape == q.shape for p, q in zip(large.parameters(), small.parameters(), strict=True))


def test_padding_has_finite_gradients_in_float16() -> None:
    """Keys of padding are zero in version 2, and cannot be normalized."""
    layer = enn.WindowAttention(8, 2, 4, version=2).half()
    layer(torch.randn(1, 8, 5, 5).half()).float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_padding_has_finite_second_derivatives() -> None:
    layer, x = enn.WindowAttention(8, 2, 4, version=2), torch.randn(1, 8, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert layer.qkv.weight.grad.isfinite().all()


def test_blocks_state_their_channels_and_stride() -> None:
    layers = [enn.SwinBlock(8, 2, 4), enn.WindowAttention(8, 2, 4), enn.PatchMerging(8)]
    for layer in layers:
        output = layer(torch.randn(1, 8, 8, 12))
        assert output.shape == (1, layer.out_channels, 8 // layer.reduction, 12 // layer.reduction)


@each_version
def test_work_for_dropped_samples_is_left_out(version: int) -> None:
    """With the same seed, the same samples are dropped as in the plain form."""
    plain = enn.SwinBlock(8, 2, 4, 2, stochastic_depth=0.5, version=version)
    saving = enn.SwinBlock(8, 2, 4, 2, stochastic_depth=0.5, version=version, kept_rows_only=True)
    saving.load_state_dict(plain.state_dict())
    x, outputs, rows = torch.randn(16, 8, 6, 8), [], []
    saving.mlp.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    for block in (plain, saving):
        torch.manual_seed(0)
        outputs.append(block(x))
    torch.testing.assert_close(*outputs)
    assert 0 < rows[0] < 16
    with pytest.raises(ValueError, match="kept_rows_only must be False for a branch with batch statistics"):
        enn.SwinBlock(
            8, 2, 4, stochastic_depth=0.5, kept_rows_only=True, norm_layer=lambda _: nn.Sequential(nn.BatchNorm2d(6))
        )(torch.randn(2, 8, 6, 6))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, partial(nn.GroupNorm, 4)])
@pytest.mark.parametrize(
    "build",
    [
        lambda norm: enn.SwinBlock(8, 2, 4, norm_layer=norm),
        lambda norm: enn.PatchMerging(8, norm_layer=norm),
        lambda norm: tnn.ConvNeXtBlock(8, norm_layer=norm),
        lambda norm: tnn.ConvNeXtBlock(8, hidden_norm_layer=norm),
    ],
)
def test_norms_over_rows_are_refused(build: Callable[[Any], nn.Module], norm: Any) -> None:
    with pytest.raises(TypeError, match="norm_layer must normalize the last dimension, as nn.LayerNorm does"):
        build(norm)
