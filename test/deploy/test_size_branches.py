"""Files of models that compute something else for some sizes give the values of the model, or refuse the sizes."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized
from torchvision_layers.deploy.formats.onnx_sizes import add_size_checks
from torchvision_layers.deploy.formats.size_rules import always_holds, holds
from torchvision_layers.testing._checks._quantization import decibels

QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4

Rule = Callable[[torch.Size], bool]

#: A condition that the example, two images of 18 pixels, satisfies as all sizes do that export compares; and sizes that
#: break it.
RULES: dict[str, tuple[Rule, tuple[int, ...]]] = {
    "remainder": (lambda size: size[2] % 3 == 0, (2, 3, 19, 18)),
    "quotient": (lambda size: size[2] // 8 >= 2, (2, 3, 15, 18)),
    "less": (lambda size: size[3] > 16, (2, 3, 18, 16)),
    "minimum": (lambda size: min(size[2], size[3]) == size[2], (2, 3, 19, 18)),
    "product": (lambda size: size[2] * size[3] > 300, (2, 3, 15, 18)),
    "batch": (lambda size: size[0] < 5, (5, 3, 18, 18)),
    "batch and image": (lambda size: size[0] * size[2] < 400, (9, 3, 48, 18)),
}


class Branching(nn.Module):
    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) if self.rule(x.shape) else y


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("name", RULES)
def test_refuses_sizes_of_another_branch(name: str, format: str, tmp_path: Path) -> None:
    rule, other = RULES[name]
    model = Branching(rule).eval()
    file = deploy.export(model, torch.randn(2, 3, 18, 18), tmp_path / "model", format=format).path
    loaded = deploy.load(file)
    with pytest.raises(ValueError, match="must have sizes"):
        loaded(torch.randn(other))
    for shape in ((2, 3, 18, 18), (1, 3, 18, 18), (3, 3, 21, 27)):
        if rule(torch.Size(shape)):
            x = torch.randn(shape)
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-4)
    if format == "onnx":
        session = onnxruntime.InferenceSession(file, QUIET, providers=["CPUExecutionProvider"])
        with pytest.raises(Exception, match="inputs must have sizes with"):
            session.run(None, {"input": torch.randn(other).numpy()})


class Padding(nn.Module):
    """Pads to a multiple of four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        height, width = x.shape[2:]
        if height % 4 or width % 4:
            x = F.pad(x, (0, -width % 4, 0, -height % 4))
        return F.avg_pool2d(x, 4)


class Resizing(Padding):
    """Resizes what two strides of two leave to the size of the input, only if it differs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.interpolate(F.max_pool2d(x, 4), scale_factor=4)
        if y.shape != x.shape:
            y = F.interpolate(y, size=x.shape[2:], mode="bilinear")
        return torch.cat([x, y], 1)


class Restoring(Padding):
    """Pads the image to a multiple of eight, and crops the result to its size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = (8 - height % 8) % 8, (8 - width % 8) % 8
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows), mode="reflect")
        return self.last(F.interpolate(F.relu(self.conv(x)), scale_factor=2.0))[..., :height, :width]


SHAPES = ((1, 3, 16, 16), (2, 3, 15, 22), (1, 3, 13, 29), (1, 3, 32, 21), (3, 3, 24, 20))


@pytest.mark.parametrize("format", ["onnx", "pt2", None])
@pytest.mark.parametrize("size", [(16, 16), (13, 13)])
@pytest.mark.parametrize("cls", [Padding, Resizing, Restoring])
def test_pads_or_resizes_some_sizes(
    cls: type[Padding], size: tuple[int, int], format: str | None, tmp_path: Path
) -> None:
    """The branch for some sizes gives right values for all."""
    model = cls().eval()
    path = tmp_path / ("model" if format else "model.pt2")
    exported = deploy.export(model, torch.randn(2, 3, *size), path, format=format)
    loaded = deploy.load(exported.path)
    for shape in SHAPES:
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (13, 13)])
@pytest.mark.parametrize("cls", [Padding, Resizing, Restoring])
def test_int8_pads_or_resizes_some_sizes(cls: type[Padding], size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cls().eval()
    x = torch.randn(64, 3, *size)
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime")
    lowered = deploy.lower(int8, x)
    file = deploy.load(deploy.export(int8, x, tmp_path / "model.onnx", format="onnx-qdq").path)
    for shape in SHAPES:
        x = torch.randn(shape)
        for run in (int8, lowered, file):
            assert decibels(model(x), run(x)) > 25


@pytest.mark.parametrize("name", RULES)
def test_graph_refuses_sizes_of_another_branch(name: str) -> None:
    rule, other = RULES[name]
    torch.manual_seed(0)
    model = Branching(rule).eval()
    int8 = quantized.quantize(model, [torch.randn(2, 3, 18, 18)], engine="pt2e")
    with pytest.raises(ValueError, match="must have|sizes that the forward of the model supports"):
        int8(torch.randn(other))
    for shape in ((2, 3, 18, 18), (1, 3, 18, 18), (3, 3, 21, 27)):
        if rule(torch.Size(shape)):
            x = torch.randn(shape)
            assert decibels(model(x), int8(x)) > 20


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("size", [16, 13])
def test_branches_between_compared_sizes(size: int, format: str, tmp_path: Path) -> None:
    model = Branching(lambda size: size[2] % 2 == 0).eval()
    x = torch.randn(2, 3, size, size)
    with pytest.warns(UserWarning, match=rf"images of {size} x {size} only: .* computes something else for some sizes"):
        file = deploy.export(model, x, tmp_path / "model", format=format).path
    loaded = deploy.load(file)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="must have"):
        loaded(torch.randn(2, 3, size + 1, size))


class Attention(nn.Module):
    """torch.export leaves a guard against a batch of one: the layout of its tokens depends on the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        tokens = y.flatten(2).transpose(1, 2)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return (tokens + attended).transpose(1, 2).reshape(y.shape)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_layouts_that_depend_on_the_batch_size(format: str, tmp_path: Path) -> None:
    model = Attention().eval()
    loaded = deploy.load(deploy.export(model, torch.randn(4, 3, 8, 8), tmp_path / "model", format=format).path)
    for shape in ((1, 3, 8, 8), (1, 3, 10, 6), (3, 3, 9, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_branches_on_a_single_image(format: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"inputs of shape \[1, 3, 18, 18\]"):
        deploy.export(
            Branching(lambda size: size[0] > 1).eval(), torch.randn(2, 3, 18, 18), tmp_path / "model", format=format
        )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("1 < 3*size[2]*size[3]", True),
        ("size[0]*size[2] + 2 >= 3", True),
        ("3 < 3*size[2]*size[3]", False),
        ("1 <= size[2] - size[3]", False),
        ("1 <= size[2] // 2", False),
        ("9 > size[2]", False),
    ],
)
def test_rules_that_always_hold(rule: str, expected: bool) -> None:
    assert always_holds(rule, [(2, 3, 18, 18)]) == expected


@pytest.mark.slow
def test_compiled_code_refuses_sizes_of_another_branch(tmp_path: Path) -> None:
    rule, other = RULES["remainder"]
    file = deploy.export(Branching(rule).eval(), torch.randn(2, 3, 18, 18), tmp_path / "model.pt2", format="aoti").path
    with pytest.raises(ValueError, match="input must have sizes with"):
        deploy.load(file)(torch.randn(other))


def test_int8_refuses_sizes_of_another_branch(tmp_path: Path) -> None:
    rule, other = RULES["remainder"]
    x = torch.randn(2, 3, 18, 18)
    int8 = quantized.quantize(Branching(rule).eval(), [x], engine="pt2e", backend="onnxruntime")
    loaded = deploy.load(deploy.export(int8, x, tmp_path / "model", format="onnx-qdq").path)
    assert loaded(x).shape == (2, 4, 18, 18)
    with pytest.raises(ValueError, match=r"sizes with \(size\[2\] % 3\) == 0, got \[2, 3, 19, 18\]"):
        loaded(torch.randn(other))


def test_checks_of_equal_and_of_long_rules() -> None:
    """No two nodes may have the same name."""
    helper, long = onnx.helper, " + ".join(["size[2]"] * 50)
    values = [helper.make_tensor_value_info(name, 1, [None] * 4) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    add_size_checks(graph, [f"{long} > 50", f"{long} > 50", f"{long} > 100"], ["x"])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), QUIET, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": torch.zeros(1, 3, 3, 1).numpy()})[0].shape == (1, 3, 3, 1)
    for size in (1, 2):
        with pytest.raises(Exception, match="inputs must have sizes with"):
            session.run(None, {"x": torch.zeros(1, 3, size, 1).numpy()})


@pytest.mark.parametrize(
    "rule",
    [
        "size[0][0] % 3 == 2 or not size[1][1] > 4",
        "max(size[0][0], size[1][1], 3) - 5 != -2",
        "(size[0][0] - 4) // 3 == -1 and 1 <= size[1][1] < 5",
        "-(size[0][0] - 7) % 4 == 2",
    ],
)
def test_checks_are_those_of_python(rule: str) -> None:
    helper = onnx.helper
    inputs = [helper.make_tensor_value_info(name, 1, ["a", "b"]) for name in ("x", "y")]
    outputs = [helper.make_tensor_value_info("z", 1, None)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "g", inputs, outputs)
    add_size_checks(graph, [rule], ["x", "y"])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), QUIET, providers=["CPUExecutionProvider"])
    results = set()
    for a in range(1, 9):
        for b in (1, 4, 5, 6):
            arrays = {"x": torch.ones(a, 2).numpy(), "y": torch.ones(3, b).numpy()}
            expected = holds(rule, [(a, 2), (3, b)])
            with nullcontext() if expected else pytest.raises(Exception, match=re.escape(rule)):
                session.run(None, arrays)
            results.add(expected)
    assert results == {True, False}
