"""The folded form of CoordConv: a convolution, and a position map that is cached for each size and never stale."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.fx
from torch import nn
from torch.overrides import TorchFunctionMode

from torchvision_layers import deploy
from torchvision_layers.experimental import nn as enn
from torchvision_layers.layers.positional_conv import PositionalConv2d

from ._support import (
    IMAGES,
    assert_up_to_date,
    coord_conv,
    count_norms,
    fold_layer,
    randomize,
    relative_error,
)


class Convolutions(TorchFunctionMode):
    """Counts convolutions."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.nn.functional.conv2d
        return func(*args, **(kwargs or {}))


@contextmanager
def convolutions(expected: int) -> Iterator[None]:
    with Convolutions() as counter:
        yield
    assert counter.count == expected


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("with_r", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kernel_size": 1, "padding": 0, "bias": False},
        {"stride": 2, "groups": 2},
        {"kernel_size": (3, 2), "padding": (2, 0), "dilation": (2, 1), "stride": (1, 2), "groups": 4},
        {"kernel_size": (3, 2), "padding": "same"},
        {"padding": "valid"},
        {"padding_mode": "reflect", "padding": (1, 2)},
        {"padding_mode": "replicate", "padding": "same", "groups": 2},
        {"padding_mode": "circular", "stride": 2},
    ],
    ids=str,
)
def test_matches_layer(arguments: dict[str, Any], with_r: bool) -> None:
    layer = coord_conv(with_r=with_r, **arguments).double()
    plain = fold_layer(layer)
    for size in ((7, 6), (7, 9), (6, 7), (7, 6), (3, 6)):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 4, *size, dtype=torch.float64).to(memory_format=form)
            output, expected = plain(x), layer(x)
            torch.testing.assert_close(output, expected.detach(), rtol=0, atol=1e-12)
            if layer.padding_mode == "zeros" and layer.kernel_size != (1, 1):
                assert output.is_contiguous(memory_format=form)
    assert list(plain.state_dict()) == [
        "conv.weight",
        *["conv.bias"] * (layer.bias is not None),
        "position.conv.weight",
    ]


@pytest.mark.parametrize("shape", [(0, 4, 7, 6), (1, 4, 1, 1), (3, 4, 1, 9), (2, 4, 301, 3)], ids=str)
def test_odd_sizes(shape: tuple[int, ...]) -> None:
    layer, x = coord_conv(with_r=True).double(), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(fold_layer(layer)(x), layer(x).detach(), rtol=0, atol=1e-12)


def test_invalid_input() -> None:
    layer = fold_layer(coord_conv())
    for x, message in (
        (torch.randn(2, 4, 0, 6), r"at least one pixel, got shape \[2, 4, 0, 6\]"),
        (torch.randn(2, 3, 7, 6), "4 channels"),
        (torch.randn(4, 7, 6), "4"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x)
    with pytest.raises(RuntimeError, match="(?i)dtype|type"):
        layer(IMAGES.double())


# The cache


def test_each_size_is_computed_once() -> None:
    layer = fold_layer(coord_conv())
    with convolutions(1):
        layer.conv(IMAGES)
    for size, count in (((7, 6), 2), ((7, 6), 1), ((7, 5), 2), ((5, 6), 2), ((7, 6), 1), ((7, 5), 1)):
        with convolutions(count):
            layer(torch.randn(3, 4, *size))
    with convolutions(1), torch.inference_mode():
        layer(IMAGES)
    with convolutions(2):  # the original layer does not cache
        coord_conv()(IMAGES)


def test_cache_size_is_limited() -> None:
    layer = fold_layer(coord_conv())
    for side in range(3, 40):
        layer(torch.randn(1, 4, side, 5))
    assert len(layer.position._cache) == 16
    with convolutions(1):
        layer(torch.randn(1, 4, 39, 5))
    with convolutions(2):
        layer(torch.randn(1, 4, 3, 5))
    assert_up_to_date(layer, torch.randn(1, 4, 20, 5))


def test_threads() -> None:
    """Threads evict each other's sizes."""
    layer, errors = fold_layer(coord_conv()), []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(150):
                side = int(torch.randint(1, 30, (), generator=generator))
                assert layer(torch.zeros(1, 4, side, 3)).shape == (1, 8, side, 3)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


# The map is never stale


def other_data(layer: PositionalConv2d) -> None:
    layer.position.conv.weight.data = layer.position.conv.weight.data * 2


def in_place(layer: PositionalConv2d) -> None:
    with torch.no_grad():
        layer.position.conv.weight.mul_(2)


def in_inference_mode(layer: PositionalConv2d) -> None:
    with torch.inference_mode():
        layer.position.conv.weight.mul_(2)


def another_parameter(layer: PositionalConv2d) -> None:
    layer.position.conv.weight = nn.Parameter(layer.position.conv.weight * 2)


def by_vector(layer: PositionalConv2d) -> None:
    vector = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(vector * 2, layer.parameters())


def an_optimizer(layer: PositionalConv2d) -> None:
    layer.requires_grad_()
    layer(IMAGES).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), 0.1).step()


CHANGES: dict[str, Callable[[PositionalConv2d], Any]] = {
    "load_state_dict": lambda layer: layer.load_state_dict(fold_layer(coord_conv(with_r=True)).state_dict()),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(
        fold_layer(coord_conv(with_r=True)).state_dict(), assign=True
    ),
    "other data": other_data,
    "other data twice": lambda layer: [(other_data(layer), layer(IMAGES)) for _ in range(20)],
    "in place": in_place,
    "in inference mode": in_inference_mode,
    "another parameter": another_parameter,
    "by vector": by_vector,
    "optimizer": an_optimizer,
    "initialized": lambda layer: layer.position.conv.reset_parameters(),
    "half and back": lambda layer: layer.half().float(),
    "half and back, the inner one": lambda layer: layer.position.conv.half().float(),
    "double and back": lambda layer: layer.double().float(),
    "channels_last": lambda layer: layer.to(memory_format=torch.channels_last),
    "applied": lambda layer: layer.apply(lambda m: in_place(layer) if isinstance(m, PositionalConv2d) else None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_changed_weights_change_the_map(change: Callable[[PositionalConv2d], Any], mode: Callable[[], Any]) -> None:
    layer = fold_layer(coord_conv(with_r=True))
    with mode():
        layer(IMAGES)
    change(layer)
    assert_up_to_date(layer, IMAGES)


def test_inference_weights() -> None:
    """Inference tensors have no version counter, so nothing is cached for them."""
    with torch.inference_mode():
        layer = fold_layer(coord_conv())
        assert layer.position.conv.weight.is_inference()
        layer(IMAGES)
        layer.position.conv.weight.mul_(2)
        assert_up_to_date(layer, IMAGES)


def test_dtypes_and_devices_have_separate_maps() -> None:
    layer, x = fold_layer(coord_conv()), IMAGES
    layer(x)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer(x.to(dtype)).dtype is dtype
        assert_up_to_date(layer, x.to(dtype))
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


def test_modes_in_every_order() -> None:
    model = deploy.fold(nn.Sequential(nn.Conv2d(4, 4, 1), coord_conv(), nn.Conv2d(8, 2, 1)))
    expected = model(IMAGES)
    modes = (torch.inference_mode, torch.enable_grad, torch.no_grad, torch.enable_grad, torch.inference_mode)
    for first in modes:
        fresh = copy.deepcopy(model)
        with first():
            fresh(IMAGES)
        for mode in modes:
            with mode():
                assert torch.equal(fresh(IMAGES), expected)
        x = IMAGES.clone().requires_grad_()
        fresh(x).square().sum().backward()
        assert x.grad is not None
        fresh.requires_grad_()(IMAGES).square().sum().backward()
        assert all(parameter.grad is not None for parameter in fresh.parameters())


def test_map_computed_in_inference_mode_serves_gradients() -> None:
    layer, factor = fold_layer(coord_conv()), torch.ones((), requires_grad=True)
    with torch.inference_mode():
        layer(IMAGES)
    (layer.position(IMAGES) * factor).sum().backward()  # autograd saves the map
    assert factor.grad is not None
    with pytest.raises(RuntimeError, match="(?i)type"):
        layer.position(IMAGES.double())


def test_gradients_of_retrained_weights() -> None:
    original, layer = coord_conv().double(), None
    layer = fold_layer(original).requires_grad_()
    x = IMAGES.double()
    with torch.no_grad():
        layer(x)
    layer(x).square().sum().backward()
    original(x).square().sum().backward()
    torch.testing.assert_close(layer.conv.weight.grad, original.weight.grad[:, :4])
    torch.testing.assert_close(layer.position.conv.weight.grad, original.weight.grad[:, 4:])


@torch.no_grad()
def test_norm_after_the_position_is_added_once() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(enn.CoordConv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())).eval()
    folded = deploy.fold(model)
    assert count_norms(folded) == 0
    for shape in ((2, 3, 8, 9), (1, 3, 5, 4)):
        x = torch.randn(shape)
        assert relative_error(folded(x), model(x)) < 1e-5
