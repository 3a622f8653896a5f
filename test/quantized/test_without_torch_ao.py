"""Behavior of the package without torch.ao.quantization, which torch has deprecated."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import torchvision_layers
from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn

from ..interpreter import Interpreter

ROOT = Path(torchvision_layers.__file__).parents[1]

# torch, torchvision and torchao import torch.ao themselves, so only imports from this package fail.
BLOCKED_IN_PACKAGE = """
    import builtins, sys
    original = builtins.__import__
    def without(name, globals=None, locals=None, fromlist=(), level=0):
        importer = (globals or {}).get("__name__", "")
        if importer.startswith("torchvision_layers") and level == 0 and (name + ".").startswith("torch.ao."):
            raise ImportError(f"{name} is not available to {importer}")
        return original(name, globals, locals, fromlist, level)
    builtins.__import__ = without
"""

# Fails every import of torch.ao, torch's own included.
BLOCKED_EVERYWHERE = """
    import sys
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("torch.ao.quantization") or name.startswith("torch.ao.nn"):
                raise ImportError(f"{name} is not available")
    sys.meta_path.insert(0, Blocked())
"""

# Imports torchvision first, then removes torch.ao for everything that is imported later.
REMOVED_AFTER_TORCHVISION = """
    import sys, torch, torchvision
    for name in list(sys.modules):
        if name.startswith("torch.ao.quantization") or name.startswith("torch.ao.nn"):
            sys.modules[name] = None
    for name in ("quantization", "nn"):
        vars(torch.ao).pop(name, None)
"""

SETUP = """
    import torch
    from torch import nn
    import copy
    from torch.utils._python_dispatch import TorchDispatchMode
    from torchvision_layers import nn as tnn
    from torchvision_layers import deploy, quantized
    from torchvision_layers.layers.positional_conv import PositionMap
    torch.set_num_threads(1)
    torch.manual_seed(0)
    def decibels(expected, output):
        return float(10 * torch.log10(expected.square().sum() / (expected - output).square().sum()))
    def import_error(call):
        try:
            call()
        except ImportError as error:
            return str(error)
        raise AssertionError("no ImportError")
    model = nn.Sequential(
        tnn.ConvNormAct(3, 8, activation_layer=nn.Hardswish), tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), tnn.LinearDropoutAct(8, 4),
    ).eval()
    x = torch.randn(4, 3, 8, 8)
"""

FLOAT = """
    twin = quantized.quantizable(model)
    assert torch.equal(twin(x), model(x))
    assert list(twin.state_dict()) == list(model.state_dict())
    assert type(twin.model[1]) is quantized.QuantizableBasicBlock
    twins = [
        quantized.QuantizableConvNormAct(3, 4), quantized.QuantizableConv1dNormAct(3, 4),
        quantized.QuantizableConv3dNormAct(3, 4), quantized.QuantizableConvNeXtBlock(4),
        quantized.QuantizableConv2dSame(3, 4, 3),
        quantized.QuantizableDepthwiseSeparableConv(3, 4), quantized.QuantizableInvertedResidual(4, 4, 1, 2),
        quantized.QuantizableLayerNorm2d(4), quantized.QuantizableLayerScale(4),
        quantized.QuantizableLinearDropoutAct(4, 4), quantized.QuantizableMBConv(4, 4),
        quantized.QuantizableFusedMBConv(4, 4), quantized.QuantizableMLP(4, [4]), quantized.QuantizableBottleneck(8, 2),
        quantized.QuantizableBasicBlock(4, 4), quantized.QuantizableSqueezeExcitation(4, 2),
        quantized.QuantizablePositionalConv2d(nn.Conv2d(3, 4, 1), PositionMap(nn.Conv2d(2, 4, 1, bias=False), False)),
    ]
    names = {name for name in quantized.__all__ if name.startswith("Quantizable")}
    names -= {"QuantizableGraph", "QuantizableLayer", "QuantizableModel"}
    assert {type(twin).__name__ for twin in twins} == names
    for any_model in (model, twin):
        assert {row.why for row in quantized.report(any_model).rows} == {"not converted yet"}
"""

ERRORS = """
    for call in (
        lambda: quantized.quantize(model, [x], engine="eager"),
        lambda: quantized.prepare_qat(model, engine="eager"),
    ):
        text = import_error(call)
        assert text.startswith("engine='eager' needs torch.ao.quantization, which cannot be imported"), text
        assert text.endswith("engine='pt2e' does not need it"), text
        assert "not available" in text or "None in sys.modules" in text or "torch.ao" in text, text
"""

FUSED = """
    for unfused in (model, twin):
        fused = copy.deepcopy(unfused)
        quantized.fuse_model(fused)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-5)
        before = repr(fused)
        quantized.fuse_model(fused)
        assert repr(fused) == before
        trained = copy.deepcopy(unfused).train()
        quantized.fuse_model(trained)
        assert any(isinstance(module, nn.BatchNorm2d) for module in trained.modules())
        torch.testing.assert_close(trained.eval()(x), model(x), rtol=0, atol=1e-5)
"""

# Fails if an operator makes quantized tensors. torch itself needs the names of their dtypes.
DEPLOYED = """
    class Plain(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            assert func.namespace != "quantized" and not (isinstance(output, torch.Tensor) and output.is_quantized)
            return output
    folded = deploy.fold(model, x)
    lowered = deploy.lower(model, x)
    for other in (folded, lowered):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-5)
    path, expected = sys.argv[1], torch.load(sys.argv[2])
    with Plain(), torch.no_grad():
        for loaded in (deploy.load(path), torch.export.load(path).module()):
            assert torch.equal(loaded(expected[0]), expected[1])
    file = deploy.export(model, x, sys.argv[2] + "2")
    torch.testing.assert_close(deploy.load(file.path)(x), model(x), rtol=0, atol=1e-5)
"""

GRAPHS = """
    int8 = quantized.quantize(model, [x], engine="pt2e")
    assert decibels(model(x), int8(x)) >= 20
    assert all(row.runs_in == "int8" for row in quantized.report(int8).rows if row.before in ("Conv2d", "Linear"))
    assert "int8" in {row.runs_in for row in quantized.report(int8).rows}
    prepared = quantized.prepare_qat(model, x, engine="pt2e")
    prepared(x).square().mean().backward()
    quantized.freeze(prepared)
    expected = prepared.eval()(x).detach()
    trained = quantized.convert(prepared)
    assert decibels(expected, trained(x)) >= 40
    assert {row.path for row in quantized.report(trained).rows} == {row.path for row in quantized.report(int8).rows}
"""

NOT_LOADED = """
    assert "torchvision_layers.quantized.eager.torch_ao.fusing" not in sys.modules
"""


def code_of(*parts: str) -> str:
    return "".join(textwrap.dedent(part) for part in parts)


def assert_runs(interpreter: Interpreter, *parts: str, arguments: Sequence[str] = ()) -> None:
    result = interpreter.run(code_of(*parts), *arguments, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_package_without_torch_ao(interpreter: Interpreter) -> None:
    """Float twins and the pt2e engine work; the eager engine raises an error that names the missing module."""
    assert_runs(interpreter, BLOCKED_IN_PACKAGE, SETUP, FLOAT, ERRORS, FUSED, GRAPHS, ERRORS, NOT_LOADED)


def test_what_remains_without_torch_ao(interpreter: Interpreter, tmp_path: Path) -> None:
    """Twins, fusing, folding, lowering and files of int8 models, in a process without torch.ao and quantized dtypes."""
    torch.manual_seed(0)
    model = nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(2, 3, 8, 8)
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="x86")
    path = deploy.export(int8, x, tmp_path / "int8.pt2").path
    torch.save((x, deploy.load(path)(x)), tmp_path / "expected.pt")
    arguments = [str(path), str(tmp_path / "expected.pt")]
    assert_runs(interpreter, REMOVED_AFTER_TORCHVISION, SETUP, FLOAT, FUSED, DEPLOYED, NOT_LOADED, arguments=arguments)


@pytest.mark.slow
def test_process_without_torch_ao(interpreter: Interpreter) -> None:
    assert_runs(interpreter, REMOVED_AFTER_TORCHVISION, SETUP, FLOAT, ERRORS, NOT_LOADED)


@pytest.mark.slow
@pytest.mark.parametrize("block", [BLOCKED_IN_PACKAGE, REMOVED_AFTER_TORCHVISION], ids=["package", "process"])
def test_eager_engine_cannot_be_imported(block: str, interpreter: Interpreter) -> None:
    """Checks the import blocks themselves, without which the tests above would show nothing."""
    imports = "\nimport torchvision_layers.quantized\nimport torchvision_layers.quantized.eager.torch_ao.fusing\n"
    result = interpreter.run(code_of(block, imports), cwd=ROOT)
    assert result.returncode == 1
    assert "fusing.py" in result.stderr
    assert "not available" in result.stderr or "torch.ao" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "torchvision", "torchao"])
def test_dependency_imports_torch_ao(module: str) -> None:
    """Once this fails for all three, the tests above can block torch.ao everywhere."""
    command = [sys.executable, "-c", code_of(BLOCKED_EVERYWHERE, f"\nimport {module}\n")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert "is not available" in result.stderr
    files = [line for line in result.stderr.splitlines() if line.startswith("  File ") and "site-packages" in line]
    assert any(f"site-packages/{package}/" in files[-1] for package in ("torch", "torchao", "torchvision"))
    assert "torchvision_layers" not in result.stderr
