"""Models and inputs that cannot be lowered."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.deploy import lower as verb
from torchvision_layers.deploy.lowering import int8_kernels

from ...interpreter import Interpreter
from .._support import FunctionModule, example, int8_model
from ._support import images

X = images(2, 3, 8, 8)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x)


def hooked() -> nn.Module:
    model = nn.Conv2d(3, 4, 3)
    model.register_forward_hook(lambda *args: None)
    return model


def noisy(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) + torch.rand_like(x[:, :1, 2:, 2:])


def with_autocasting(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.conv(x)


def by_value(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) if x.sum() > 0 else self.conv(-x)


CONV = nn.Conv2d(3, 4, 3)
CASES: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no module": (torch.relu, X, TypeError, "model must be a module"),
    "compiled": (torch.compile(nn.Conv2d(3, 4, 3)), X, ValueError, "pass the module that it wraps, model._orig_mod"),
    "lazy": (nn.LazyConv2d(4, 3), X, TypeError, "model must not contain lazy modules"),
    "hooks": (hooked(), X, ValueError, "model has hooks"),
    "double": (nn.Conv2d(3, 4, 3).double(), X, TypeError, "model must be in float32, weight is in float64"),
    "meta": (nn.Conv2d(3, 4, 3, device="meta"), X, ValueError, "model must be on the CPU, but weight is on meta"),
    "no example": (CONV, None, TypeError, "example must be a float32 tensor"),
    "double example": (CONV, X.double(), TypeError, "example must be a float32 tensor, got torch.float64"),
    "wrong example": (CONV, (X, X), TypeError, "example must hold the inputs of forward"),
    "wrong channels": (CONV, X[:, :2], ValueError, "must have 3 channels in dimension 1"),
    "infinite": (CONV, X / 0, ValueError, "example must be finite"),
    "state": (Counter(), X, ValueError, "model must not write to its own parameters and buffers"),
    "switched autocasting": (
        FunctionModule(with_autocasting, conv=CONV),
        X,
        RuntimeError,
        "model cannot be lowered: its graph contains wrap_with_autocast",
    ),
    "values": (FunctionModule(by_value, conv=CONV), X, RuntimeError, "uses the value of a tensor as a Python number"),
    "random": (
        FunctionModule(noisy, conv=CONV),
        X,
        RuntimeError,
        "the model must return the same result for the same input",
    ),
}


@pytest.mark.parametrize(("model", "x", "error", "message"), CASES.values(), ids=CASES)
def test_errors(model: Any, x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        deploy.lower(model, x)
    assert "dispatch" not in str(caught.value).lower()


def test_lowered_models_are_not_float_models() -> None:
    lowered = deploy.lower(CONV, X)
    for verb_ in (deploy.lower, deploy.fold, lambda model, x: quantized.quantize(model, [x])):
        for model in (lowered, nn.Sequential(lowered)):
            with pytest.raises(ValueError, match="is a LoweredModel: pass the module that it wraps"):
                verb_(model, X)


@pytest.mark.parametrize("model", [int8_model("eager"), nn.Sequential(int8_model("pt2e"))], ids=["eager", "inside"])
def test_int8_models(model: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"model must be float or an int8 graph, (0|model) is a Quantizable"):
        deploy.lower(model, example())


def test_prepared_models() -> None:
    prepared = quantized.prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(TypeError, match="model must be float or an int8 graph"):
        deploy.lower(nn.Sequential(prepared), X)


def test_builds_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = deploy.lower(CONV, X)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for call in (lambda: deploy.lower(CONV, X), lambda: lowered.float()(X)):
        with pytest.raises(
            RuntimeError, match=r"lowered models need the operators of oneDNN.*run deploy.fold\(model\)"
        ):
            call()


def no_kernel(*args: Any) -> None:
    raise RuntimeError("Could not run 'onednn::qconv_prepack'")


def test_builds_without_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = int8_model("pt2e")
    lowered = deploy.lower(graph, example())
    int8_kernels._has_exact_products.cache_clear()
    for operators in (object(), SimpleNamespace(**dict.fromkeys(int8_kernels._OPERATORS, no_kernel))):
        monkeypatch.setattr(torch.ops, "onednn", operators)
        for call in (lambda: deploy.lower(graph, example()), lambda: lowered.float()(example())):
            with pytest.raises(
                RuntimeError, match=r"operators of oneDNN for integers.*lower the float model, or .*onnx-qdq"
            ):
                call()
        deploy.lower(CONV, X)


@pytest.mark.slow
def test_imports_without_onednn(interpreter: Interpreter) -> None:
    code = (
        "import torch\n"
        "torch.ops.mkldnn = torch.ops.onednn = object()\n"
        "from torchvision_layers import deploy\n"
        "try:\n"
        "    deploy.lower(torch.nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8))\n"
        "except RuntimeError as error:\n"
        "    print(error)"
    )
    result = interpreter.run(code, cwd=Path(deploy.__file__).parents[2])
    assert "need the operators of oneDNN" in result.stdout, result.stderr


def test_programs_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_(module: torch.fx.GraphModule) -> None:
        for node in module.graph.nodes:
            if node.target is torch.ops.mkldnn._convolution_pointwise.default:
                node.args = (*node.args[:-3], "relu", [], "")

    fuse = verb.__globals__["fuse"]
    monkeypatch.setitem(verb.__globals__, "fuse", lambda module: (fuse(module), break_(module)))
    with pytest.raises(RuntimeError, match="lowering changed an output by"):
        deploy.lower(CONV, X)
