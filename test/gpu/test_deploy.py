"""Folding, and exported files on another device than the one that wrote them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

X = torch.linspace(-1, 1, 2 * 3 * 16 * 20).sin().view(2, 3, 16, 20)


def assert_on(module: nn.Module, device: torch.device) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert tensor.device.type == device.type, name


@pytest.mark.parametrize(
    "layer", [None, tnn.WSConv2d, enn.CoordConv2d], ids=lambda layer: getattr(layer, "__name__", "-")
)
@torch.no_grad()
def test_fold_keeps_the_device(device: torch.device, model: nn.Module, layer: type[nn.Module] | None) -> None:
    model = model if layer is None else nn.Sequential(layer(3, 4, 3), nn.BatchNorm2d(4)).eval()
    expected = model(X)
    folded = deploy.fold(model.to(device), X.to(device))
    assert_on(folded, device)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    output = folded(X.to(device))
    assert output.device.type == device.type
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-4)
    output = folded.to(memory_format=torch.channels_last)(X.to(device, memory_format=torch.channels_last))
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_fold_on_meta(model: nn.Module) -> None:
    folded = deploy.fold(model.to("meta"))
    assert_on(folded, torch.device("meta"))
    assert folded(X.to("meta")).shape == (2, 5)


def test_equalize_keeps_the_device(device: torch.device, model: nn.Module) -> None:
    assert_on(deploy.equalize(model.to(device)), device)


@pytest.fixture
def file(model: nn.Module, tmp_path: Path) -> Path:
    """A program that was written on the CPU, and that torch alone loads."""
    return deploy.export(model, X, tmp_path / "model.pt2", format="pt2", lowered=False).path


@torch.no_grad()
def test_a_pt2_file_runs_on_the_device(device: torch.device, model: nn.Module, file: Path) -> None:
    moved = move_to_device_pass(torch.export.load(file), device).module()
    for x in (X, torch.cat([X, X[:1]])):
        torch.testing.assert_close(moved(x.to(device)).cpu(), model(x), rtol=1e-4, atol=1e-4)
    moved = move_to_device_pass(torch.export.load(file), "meta").module()
    assert moved(X.to("meta")).shape == (2, 5)


@pytest.mark.slow
@torch.no_grad()
def test_a_pt2_file_compiles_for_the_device(device: torch.device, model: nn.Module, file: Path, tmp_path: Path) -> None:
    program = torch.export.load(file)
    package = torch._inductor.aoti_compile_and_package(
        move_to_device_pass(program, device), package_path=str(tmp_path / "package.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    torch.testing.assert_close(loaded(X.to(device)).cpu(), model(X), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_an_onnx_file_runs_on_the_device(device: torch.device, model: nn.Module, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime has no {provider}")
    deploy.export(model, X, tmp_path / "model.onnx", format="onnx")
    options = {"use_tf32": 0} if device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=[(provider, options)])
    assert session.get_providers()[0] == provider
    output: Tensor = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])
    torch.testing.assert_close(output, model(X), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_compiles_and_trains_on_the_device(device: torch.device, model: nn.Module) -> None:
    model = model.to(device).train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    torch.testing.assert_close(compiled(X.to(device)), model(X.to(device)), rtol=1e-3, atol=1e-3)
    compiled(X.to(device)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in compiled.parameters())
