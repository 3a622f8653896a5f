"""Which graphs take every image size, and how the engine finds out without symbolic sizes."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized.pt2e import sizes, workflow
from torchvision_layers.quantized.pt2e.export import export
from torchvision_layers.quantized.pt2e.model import QuantizableGraph
from torchvision_layers.quantized.settings import Settings
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, tiny_model, with_running_stats

X = torch.randn(4, 3, 18, 20)
OTHER = torch.randn(3, 3, 13, 27)


def with_conv(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Calls ``function`` with the output of a convolution, which has the size of the input."""
    return FunctionModule(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(3, 4, 3, padding=1)).eval()


def in_windows(x: Tensor) -> Tensor:
    """The means of windows of 7 x 7 after padding."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, (7 - width % 7) % 7, 0, (7 - height % 7) % 7))
    return x.view(x.shape[0], x.shape[1], x.shape[2] // 7, 7, x.shape[3] // 7, 7).mean((3, 5))


def in_two_windows(x: Tensor) -> Tensor:
    """Pads to multiples of 7 and of 14."""
    return in_windows(x) + in_windows(F.interpolate(x, scale_factor=2))[..., ::2, ::2]


def int8(model: nn.Module, dynamic_sizes: bool | None = None) -> QuantizableGraph:
    return workflow.quantize(model, iter([Inputs((X,))]), Settings("x86", dynamic_sizes=dynamic_sizes))


def has_symbolic_sizes(model: nn.Module) -> bool:
    return hasattr(export(model, Inputs((X,))).graph_module, "_guards_fn")


def test_constant_and_symbolic_sizes_give_equal_graphs() -> None:
    model = with_running_stats(tiny_model())
    static, symbolic = int8(model), int8(model, dynamic_sizes=True)
    assert not has_symbolic_sizes(model)
    assert static.signature.sizes == symbolic.signature.sizes == [(None, 3, None, None)]
    assert static.batch_dims == symbolic.batch_dims == ([[0]], [[0]])
    for x in (X, OTHER, X[:1]):
        assert torch.equal(static(x), symbolic(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.flatten(1),
        lambda y: F.adaptive_avg_pool2d(y, 1),
        lambda y: F.interpolate(y, scale_factor=2.0),
        lambda y: F.pixel_shuffle(y, 2),
        lambda y: torch.cat(y.chunk(2, 1), 1).mean((2, 3)),
        lambda y: y.permute(0, 2, 3, 1) if y.dim() == 4 else y,
    ],
)
def test_graph_that_does_not_depend_on_sizes_is_exported_with_constants(function: Callable[[Tensor], Tensor]) -> None:
    model = with_conv(function)
    exported = export(model, Inputs((X,)))
    assert not hasattr(exported.graph_module, "_guards_fn")
    assert exported.signature.sizes == [(None, 3, None, None)]
    torch.testing.assert_close(exported.graph_module(OTHER)[0], model(OTHER))


def log_rows(y: Tensor) -> Tensor:
    return y * torch.logspace(-1, 1, y.shape[2])[:, None]


@pytest.mark.parametrize(
    "function", [log_rows, lambda y: torch.stack(y.unbind(2), 3), lambda y: sum(y.unbind(3)) * y.shape[2]]
)
def test_size_that_torch_takes_for_a_constant_is_fixed_with_a_warning(function: Callable[[Tensor], Tensor]) -> None:
    model = with_conv(function)
    with pytest.warns(UserWarning, match="takes images of 18 x 20 only"):
        exported = export(model, Inputs((X,)))
    assert exported.signature.sizes == [(None, 3, 18, 20)]
    torch.testing.assert_close(exported.graph_module(X)[0], model(X))
    with pytest.raises(RuntimeError, match=r"fixes dimension [23] of the input .* pass dynamic_sizes=False"):
        export(model, Inputs((X,)), dynamic_sizes=True)


def rows(y: Tensor) -> Tensor:
    return y + torch.linspace(-1, 2.5, y.shape[2])[:, None]


def columns(y: Tensor) -> Tensor:
    return y + torch.linspace(1, 0, steps=y.shape[3], dtype=y.dtype)


def rotate(y: Tensor, align_corners: bool = False) -> Tensor:
    theta = torch.tensor([[0.8, -0.6, 0.1], [0.6, 0.8, 0.0]]).expand(y.shape[0], 2, 3)
    grid = F.affine_grid(theta, list(y.shape), align_corners=align_corners)
    return F.grid_sample(y, grid, align_corners=align_corners)


@pytest.mark.parametrize("function", [rows, columns, rotate, partial(rotate, align_corners=True)])
def test_grid_of_coordinates_has_the_size_of_each_image(function: Callable[[Tensor], Tensor]) -> None:
    model = with_conv(function)
    graph = export(model, Inputs((X,)), dynamic_sizes=True).graph_module
    for x in (X, X[:1, :, :7], torch.cat([X, X], 3)):
        torch.testing.assert_close(graph(x)[0], model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.view(y.size(0), -1),
        lambda y: y.view(y.shape[0], -1),
        lambda y: F.interpolate(y, size=y.shape[2:]),
        lambda y: y / y[0].numel(),
        lambda y: y[..., : y.size(-1) // 2],
    ],
)
def test_graph_that_depends_on_sizes_has_symbolic_ones(function: Callable[[Tensor], Tensor]) -> None:
    assert has_symbolic_sizes(with_conv(function))


def test_branch_on_the_size_is_not_lost() -> None:
    """The graph refuses sizes that take another branch than the example."""
    graph = int8(with_conv(lambda y: y if y.shape[3] > 16 else -y))
    assert graph(torch.randn(2, 3, 9, 17)).shape == (2, 4, 9, 17)
    with pytest.raises(ValueError, match="input must have sizes that the forward of the model supports"):
        graph(torch.randn(2, 3, 9, 16))


@pytest.mark.parametrize("is_qat", [False, True])
def test_branch_for_a_single_image_is_not_lost(is_qat: bool) -> None:
    """torch.export takes every batch for one of several images, without a guard."""
    model = with_conv(lambda y: y.flip(1) if y.shape[0] == 1 else y)
    if is_qat:
        prepared = quantized.prepare_qat(model, X, engine="pt2e")
        prepared(X)
        graph = quantized.convert(prepared)
    else:
        graph = int8(model)
    assert [graph(torch.cat([X, X])[:n]).shape[0] for n in (0, 2, 3)] == [0, 2, 3]
    with pytest.raises(ValueError, match="input must have at least two images"):
        graph(X[:1])
    squeezed = int8(with_conv(lambda y: y.mean((2, 3)).squeeze()))
    assert [squeezed(X[:n]).shape for n in (0, 1, 2)] == [(0, 4), (4,), (2, 4)]


def test_slow_sizes_are_fixed_with_a_warning() -> None:
    model = with_conv(in_two_windows)
    with pytest.warns(UserWarning, match="takes images of 18 x 20 only.*dynamic_sizes=True exports for all sizes"):
        graph = int8(model)
    assert graph.signature.sizes == [(None, 3, 18, 20)]
    for x in (X, X[:1], X[:0], torch.cat([X, X])):
        assert graph(x).shape == model(x).shape
    with pytest.raises(ValueError, match="x must have size 18 in dimension 2"):
        graph(OTHER)


def test_sizes_are_fixed_if_torch_fails_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does for S3D of torchvision: "NotImplementedError: the inequality cannot be solved"."""

    def fail(*args: object) -> None:
        raise RuntimeError("the inequality cannot be solved")

    monkeypatch.setattr(sizes, "_export_symbolic", fail)
    model = with_conv(in_two_windows)
    with pytest.warns(UserWarning, match="18 x 20 only.*for all sizes impossible; dynamic_sizes=True shows the error"):
        graph = int8(model)
    assert graph.signature.sizes == [(None, 3, 18, 20)]
    assert decibels(model(X), graph(X)) > 30
    with pytest.raises(RuntimeError, match="the inequality cannot be solved"):
        int8(model, dynamic_sizes=True)


@pytest.mark.parametrize("dynamic_sizes", [True, False])
def test_sizes_follow_the_argument_without_a_warning(dynamic_sizes: bool) -> None:
    model = with_conv(in_windows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        graph = int8(model, dynamic_sizes)
    assert graph.signature.sizes == [(None, 3, None, None) if dynamic_sizes else (None, 3, 18, 20)]
    if dynamic_sizes:
        assert graph(OTHER).shape == model(OTHER).shape


def test_sizes_are_chosen_by_an_argument() -> None:
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 16, 16)
    larger = torch.randn(2, 3, 18, 18)
    fixed = quantized.quantize(model, [images], engine="pt2e", dynamic_sizes=False)
    with pytest.raises(ValueError, match=r"must have size 16 in dimension 2, got shape \[2, 3, 18, 18\]"):
        fixed(larger)
    assert quantized.quantize(model, [images], engine="pt2e", dynamic_sizes=True)(larger).shape == (2, 4, 16, 16)
    with pytest.raises(ValueError, match="dynamic_sizes must be None or True with engine='eager'"):
        quantized.quantize(model, [images], dynamic_sizes=False)


def test_guard_against_one_image_does_not_cost_a_second_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution of tokens, as in PVT V2, chooses a layout by the batch and leaves a guard."""
    model = FunctionModule(
        lambda m, x: m.conv(m.norm(x.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(x.shape)),
        norm=nn.LayerNorm(3),
        conv=nn.Conv2d(3, 4, 3),
    ).eval()
    exports, export_once = [], torch.export.export
    monkeypatch.setattr(
        torch.export, "export", lambda *args, **kwargs: exports.append(0) or export_once(*args, **kwargs)
    )
    graph = int8(model)
    for x in (X, OTHER, X[:1]):
        assert graph(x).shape == model(x).shape
    assert len(exports) == 1


def test_what_torch_cannot_simplify_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers = nn.Conv2d(3, 8, 7, 2, 3), pool(), nn.Conv2d(8, 8, 1), pool(), nn.Conv2d(8, 8, 3, padding=1), pool()
    model = nn.Sequential(*layers, nn.MaxPool2d(2, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1))
    quantized.prepare_qat(model, torch.randn(2, 3, 96, 96), engine="pt2e")
    assert capsys.readouterr().err == ""
