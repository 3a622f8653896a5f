"""Copies, programs, transforms and mixed precision of a convolution with a position map."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.layers.positional_conv import PositionalConv2d

from ._support import IMAGES, assert_up_to_date, coord_conv, fold_layer, relative_error

DEPRECATED = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated")


def test_copies_have_an_empty_cache() -> None:
    layer = fold_layer(coord_conv())
    expected = layer(IMAGES)
    assert layer.position._cache
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(layer),
        copy.copy(layer.position),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        position = copied.position if isinstance(copied, PositionalConv2d) else copied
        assert position._cache == {}
        if copied is not position:
            assert torch.equal(copied(IMAGES), expected)
    assert layer.position._cache
    assert sum(isinstance(value, Tensor) for value in layer.state_dict().values()) == 3


def assert_runs_at_all_sizes(program: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
    for shape in ((2, 4, 7, 6), (3, 4, 5, 9), (2, 4, 7, 6), (5, 4, 12, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), layer(x).detach(), rtol=1e-5, atol=1e-5)


@DEPRECATED
@pytest.mark.parametrize("with_r", [False, True])
@pytest.mark.parametrize("has_run", [False, True])
def test_programs_accept_all_sizes(with_r: bool, has_run: bool) -> None:
    layer = coord_conv(with_r=with_r)
    plain = fold_layer(layer)
    if has_run:
        plain(IMAGES)
    scripted = torch.jit.script(plain)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert_runs_at_all_sizes(scripted, layer)
    assert_runs_at_all_sizes(torch.jit.load(file), layer)
    assert_runs_at_all_sizes(torch.jit.trace(plain, torch.randn(1, 4, 1, 1), check_trace=False), layer)
    assert_runs_at_all_sizes(torch.fx.symbolic_trace(plain), layer)
    if has_run:
        assert len(plain.position._cache) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_dynamic_sizes(strict: bool) -> None:
    layer = coord_conv()
    plain, dim = fold_layer(layer), torch.export.Dim.AUTO
    plain(IMAGES)
    program = torch.export.export(plain, (IMAGES,), dynamic_shapes=({0: dim, 2: dim, 3: dim},), strict=strict)
    assert_runs_at_all_sizes(program.module(), layer)


def test_compiled() -> None:
    torch.compiler.reset()
    layer = coord_conv()
    assert_runs_at_all_sizes(torch.compile(fold_layer(layer), backend="aot_eager", fullgraph=True), layer)
    torch.compiler.reset()


def test_fake_tensors_are_not_cached() -> None:
    layer = fold_layer(coord_conv())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(IMAGES)).shape == (2, 8, 7, 6)
    assert_up_to_date(layer, IMAGES)


@DEPRECATED  # torch itself uses scripting for forward-mode differentiation
def test_transforms() -> None:
    original = coord_conv()
    layer = fold_layer(original)
    for _ in range(2):  # with an empty cache, then with a cached map
        stacked = torch.vmap(layer)(IMAGES[None].repeat(3, 1, 1, 1, 1))
        torch.testing.assert_close(stacked, original(IMAGES).detach().expand(3, -1, -1, -1, -1), rtol=1e-5, atol=1e-5)
        gradient = torch.func.grad(lambda x: layer(x).square().sum())(IMAGES)
        x = IMAGES.clone().requires_grad_()
        original(x).square().sum().backward()
        assert relative_error(gradient, x.grad) < 1e-5
        _, tangent = torch.func.jvp(layer, (IMAGES,), (torch.ones_like(IMAGES),))
        assert relative_error(tangent, layer.conv(torch.ones_like(IMAGES)) - layer.conv.bias.view(-1, 1, 1)) < 1e-5
        assert_up_to_date(layer, IMAGES)


@DEPRECATED  # torch itself uses scripting for forward-mode differentiation
def test_map_computed_inside_a_transform() -> None:
    for make in (
        lambda layer: torch.func.grad(lambda images, of=layer: of(images).sum())(IMAGES),
        lambda layer: torch.vmap(layer)(IMAGES[None]),
        lambda layer: torch.func.jvp(layer, (IMAGES,), (IMAGES,)),
        lambda layer: torch.func.functionalize(layer)(IMAGES),
    ):
        layer = fold_layer(coord_conv())
        make(layer)
        assert_up_to_date(layer, IMAGES)
        x = IMAGES.clone().requires_grad_()
        layer(x).sum().backward()


def test_functional_call_with_other_weights() -> None:
    layer, other = fold_layer(coord_conv()), fold_layer(coord_conv())
    expected = other(IMAGES), layer(IMAGES)
    for weights in (dict(other.named_parameters()), {k: v.detach().clone() for k, v in other.named_parameters()}):
        assert torch.equal(torch.func.functional_call(layer, weights, (IMAGES,)), expected[0])
        assert torch.equal(layer(IMAGES), expected[1])
    stacked, _ = torch.func.stack_module_state([layer, other])
    outputs = torch.vmap(lambda weights: torch.func.functional_call(layer, weights, (IMAGES,)))(stacked)
    torch.testing.assert_close(outputs, torch.stack([expected[1], expected[0]]), rtol=1e-5, atol=1e-5)
    assert_up_to_date(layer, IMAGES)


def test_mixed_precision() -> None:
    original = coord_conv()
    layer = fold_layer(original)
    for _ in range(2):  # with an empty cache, then with a cached map
        with torch.autocast("cpu", torch.bfloat16):
            mixed, expected = layer(IMAGES), original(IMAGES)
        assert mixed.dtype is expected.dtype is torch.bfloat16
        assert relative_error(mixed.float(), expected.detach().float()) < 0.02
        assert layer(IMAGES).dtype is torch.float32
        assert_up_to_date(layer, IMAGES)


def test_norms_and_scales_also_scale_the_map() -> None:
    model = nn.Sequential(coord_conv(with_r=True), nn.BatchNorm2d(8), tnn.LayerScale(8, 0.3)).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    with torch.no_grad():
        (layer,) = folded = deploy.fold(model)
        assert type(layer) is PositionalConv2d
        assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-5
