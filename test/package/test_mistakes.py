"""Mistakes of a first visit: each error names the argument, the rule and the value, and shows code that works."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from torchvision_layers import deploy, quantized


class Net(nn.Module):
    """A branch and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.branch, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.cat([x, torch.relu(self.branch(x))], 1).mean((2, 3)))


torch.manual_seed(0)
NET, X, LABELS = Net().eval(), torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)


@pytest.fixture(scope="module")
def int8() -> quantized.QuantizableModel:
    return quantized.quantize(NET, [X])


@pytest.fixture(scope="module")
def graph() -> Any:
    return quantized.quantize(NET, [X], engine="pt2e")


@pytest.mark.parametrize(
    ("name", "format"),
    [("m.pt", "torchscript"), ("M.TS", "torchscript"), ("m.pt2", "pt2"), ("m.onnx", "onnx"), ("m", "pt2")],
)
def test_suffix_chooses_the_format(name: str, format: str, tmp_path: Path) -> None:
    exported = deploy.export(NET, X, tmp_path / name)
    assert (exported.format, deploy.load(exported.path).format) == (format, format)
    torch.testing.assert_close(deploy.load(exported.path)(X), NET(X), rtol=0, atol=1e-5)


def test_suffix_chooses_the_format_of_int8(int8: nn.Module, tmp_path: Path) -> None:
    for name in ("m.pt", "m"):
        assert deploy.export(int8, X, tmp_path / name).format == "torchscript"
    with pytest.raises(TypeError, match=r"format='onnx-qdq' does not support .* and a path that ends in \.pt, or call"):
        deploy.export(int8, X, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("m.xyz", None, r"path must end in \.mlpackage, \.onnx, .* if format is None, got .*m\.xyz"),
        ("m.pth", None, r"path must end in .* if format is None"),
        ("m.onnx", "pt2", r"path must end in \.pt2 for format='pt2', got .*m\.onnx"),
        ("m.pt2", "torchscript", r"path must end in \.pt or \.ts for format='torchscript'"),
        ("m.PT2", "onnx", r"path must end in \.onnx for format='onnx'"),
        ("m.bin", "openvino", r"path must end in \.xml for format='openvino'"),
    ],
)
def test_suffix_of_no_format_or_another(name: str, format: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        deploy.export(NET, X, tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


def test_suffix_that_no_format_has_needs_the_format(tmp_path: Path) -> None:
    assert deploy.export(NET, X, tmp_path / "m.weights", format="pt2").format == "pt2"


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, 3, NET):
        with pytest.raises(TypeError, match="path must be a str or a Path, got"):
            deploy.export(NET, X, path)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="path must be a str or a Path, got"):
            deploy.load(path)  # type: ignore[arg-type]
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(PermissionError, match="path must be in a folder that this process may write to, got"):
        deploy.export(NET, X, tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net, r"pass an instance, Net\(\.\.\.\)\.eval\(\)"),
        (torchvision.models.resnet18, r"the function resnet18: pass the model that it returns, resnet18\(\.\.\.\)"),
        (
            NET.state_dict(),
            "OrderedDict with the keys 'stem.weight', 'stem.bias', ...: build the model, call load_state",
        ),
        (Net().load_state_dict(NET.state_dict()), r"what load_state_dict returns: call model\.load_state_dict"),
        ("resnet18.pth", r"call model\.load_state_dict\(torch\.load\('resnet18\.pth'\)\), and pass model"),
        (X, r"a tensor of shape \[2, 3, 8, 8\]: the model is the first argument"),
        (None, "None"),
    ],
)
def test_anything_but_a_model(model: Any, message: str, tmp_path: Path) -> None:
    calls = [
        lambda: quantized.quantize(model, [X]),
        lambda: quantized.prepare_qat(model, X),
        lambda: quantized.fuse_model(model),
        lambda: deploy.fold(model, X),
        lambda: deploy.lower(model, X),
        lambda: deploy.export(model, X, tmp_path / "m.pt2"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"^model must be a module, got .*{message}") as caught:
            call()
        assert len(str(caught.value)) < 220


def test_model_that_is_int8_or_lowered_already(int8: nn.Module, graph: nn.Module) -> None:
    for model in (int8, graph):
        for engine in ("eager", "pt2e"):
            with pytest.raises(ValueError, match="model is prepared or converted already; start from the float model"):
                quantized.quantize(model, [X], engine=engine)
        with pytest.raises(ValueError, match="fold the float model, then quantize it"):
            deploy.fold(model, X)
    with pytest.raises(ValueError, match="the model before it was lowered"):
        quantized.quantize(deploy.lower(NET, X), [X])


def test_model_of_another_dtype_or_device() -> None:
    for model in (Net().double(), Net().half()):
        with pytest.raises(TypeError, match=r"stem\.weight is .*: call model\.float\(\)"):
            quantized.quantize(model, [X])
        with pytest.raises(TypeError, match=r"stem\.weight is .*: call model\.float\(\)"):
            deploy.lower(model, X)
    with pytest.raises(
        ValueError, match=r"CPU, but stem\.weight is on meta: call model\.to_empty\(device='cpu'\) and load"
    ):
        deploy.lower(Net().to("meta"), X)
