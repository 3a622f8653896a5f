"""Models for the tests of deployment, files written from them, and comparisons of folded models."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.layers.positional_conv import PositionalConv2d

__all__ = [
    "CASES",
    "CLASSES",
    "FAST",
    "IMAGES",
    "SLOW",
    "Case",
    "CaseFile",
    "FunctionModule",
    "assert_folds",
    "assert_up_to_date",
    "conv",
    "conv_and_norm",
    "coord_conv",
    "count_norms",
    "example",
    "float_model",
    "fold_layer",
    "int8_model",
    "leaf_classes",
    "norm",
    "randomize",
    "relative_error",
    "write",
]

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@dataclass(frozen=True)
class Case:
    format: str
    engine: str | None
    suffix: str
    lowered: bool = False


CASES = {
    "torchscript": Case("torchscript", None, ".pt"),
    "torchscript-int8": Case("torchscript", "eager", ".pt"),
    "pt2": Case("pt2", None, ".pt2"),
    "pt2-int8": Case("pt2", "pt2e", ".pt2"),
    "lowered": Case("pt2", None, ".pt2", lowered=True),
    "lowered-int8": Case("pt2", "pt2e", ".pt2", lowered=True),
    "onnx": Case("onnx", None, ".onnx"),
    "onnx-qdq": Case("onnx-qdq", "pt2e", ".onnx"),
    "aoti-int8": Case("aoti", "pt2e", ".pt2"),
    "aoti": Case("aoti", None, ".pt2"),
}
#: Compiling machine code takes more than ten seconds for each file.
FAST = [name for name, case in CASES.items() if case.format != "aoti"]
SLOW = [name for name in CASES if name not in FAST]


@dataclass(frozen=True)
class CaseFile:
    model: nn.Module
    exported: deploy.Exported

    @property
    def path(self) -> Path:
        return self.exported.path


def float_model(seed: int = 0, blocks: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [tnn.BasicBlock(8, 8), tnn.InvertedResidual(8, 8, 1, 2)] if blocks else []
    model = nn.Sequential(tnn.ConvNormAct(3, 8), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for _ in range(3):  # gives the batch norms statistics
        model(torch.randn(4, 3, 16, 16))
    return model.eval()


def example() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def int8_model(engine: str, seed: int = 0) -> nn.Module:
    return quantized.quantize(float_model(seed), [example()], engine=engine, backend="x86")


def write(case: Case, path: Path) -> CaseFile:
    # Compiling the blocks in int8 takes twenty seconds. The float model covers them, in a slow test.
    model: nn.Module = float_model(blocks=(case.format, case.engine) != ("aoti", "pt2e"))
    if case.engine is not None:
        model = quantized.quantize(model, [example()], engine=case.engine, backend="x86")
    exported = deploy.export(
        model,
        example(),
        path.with_suffix(case.suffix),
        format=case.format,
        lowered=case.lowered,
        classes=CLASSES,
        mean=[0.1, 0.2, 0.3],
        std=[0.5, 0.6, 0.7],
        about={"trained on": "noise", "epochs": 3, "log": [1.5, None, "ä\n\"'"]},
    )
    return CaseFile(model, exported)


IMAGES = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(0))


class FunctionModule(nn.Module):
    """Runs ``function(self, x)``, with modules as children, in eval mode."""

    def __init__(self, function: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def randomize(model: nn.Module) -> nn.Module:
    """``model`` in eval mode with random statistics, affine parameters and scales, far from their initial values."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if "Norm" in type(module).__name__:
                for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
                    if isinstance(tensor, Tensor):
                        tensor.normal_().add_(tensor.sign(), alpha=0.2)
            scale = module.weight if isinstance(module, tnn.LayerScale) else getattr(module, "layer_scale", None)
            if isinstance(scale, nn.Parameter):
                scale.uniform_(0.5, 1.5)
    return model.eval()


def relative_error(output: Tensor, expected: Tensor) -> float:
    """The largest difference divided by the largest value; infinite if dtypes or shapes differ."""
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return math.inf
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) if output.numel() else 0.0


def leaf_classes(model: nn.Module) -> dict[str, str]:
    """The class name of every module without children, by path."""
    return {path: type(m).__name__ for path, m in model.named_modules() if next(m.children(), None) is None}


def assert_folds(model: nn.Module, x: Tensor, *, batch: object = None, tolerance: float = 1e-10) -> nn.Module:
    """Folds ``model`` in float64 and compares: the model must not change, and folding again must change nothing."""
    model, x = model.double().eval(), x.double()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x.clone())
        folded = deploy.fold(model, batch)
        assert relative_error(folded(x.clone()), expected) <= tolerance
        assert torch.equal(model(x.clone()), expected)
        again = deploy.fold(folded, batch)
        assert torch.equal(again(x.clone()), folded(x.clone()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert repr(again) == repr(folded)
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    return folded


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def conv_and_norm(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(), norm(), *more)


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def coord_conv(**arguments: Any) -> enn.CoordConv2d:
    return enn.CoordConv2d(4, 8, **{"kernel_size": 3, "padding": 1, **arguments})


def fold_layer(layer: nn.Module) -> PositionalConv2d:
    folded = deploy.fold(layer)
    assert type(folded) is PositionalConv2d
    return folded


def assert_up_to_date(layer: PositionalConv2d, x: Tensor) -> None:
    """The cached maps must give the same output as a copy with an empty cache."""
    fresh = copy.deepcopy(layer)
    assert not fresh.position._cache
    with torch.no_grad():
        assert torch.equal(layer(x), fresh(x))
        assert torch.equal(layer(x), fresh(x))
