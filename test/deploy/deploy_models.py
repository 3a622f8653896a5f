"""Models, and the files made of them, for the tests of deployment."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn

__all__ = ["CASES", "CLASSES", "FAST", "Case", "Reads", "Written", "example", "float_model", "int8_model", "write"]

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@dataclass(frozen=True)
class Case:
    format: str
    engine: str | None
    suffix: str


CASES = {
    "torchscript": Case("torchscript", None, ".pt"),
    "torchscript-int8": Case("torchscript", "eager", ".pt"),
    "pt2": Case("pt2", None, ".pt2"),
    "pt2-int8": Case("pt2", "pt2e", ".pt2"),
    "onnx": Case("onnx", None, ".onnx"),
    "onnx-qdq": Case("onnx-qdq", "pt2e", ".onnx"),
    "aoti-int8": Case("aoti", "pt2e", ".pt2"),
    "aoti": Case("aoti", None, ".pt2"),
}
#: Compiling takes ten seconds and more; one of the two is enough for every change.
FAST = [name for name in CASES if name != "aoti"]


@dataclass(frozen=True)
class Written:
    model: nn.Module
    exported: deploy.Exported

    @property
    def path(self) -> Path:
        return self.exported.path


def float_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        tnn.ConvNormAct(3, 8),
        tnn.BasicBlock(8, 8),
        tnn.InvertedResidual(8, 8, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    for _ in range(3):  # batch norms as after some training
        model(torch.randn(4, 3, 16, 16))
    return model.eval()


def example() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def int8_model(engine: str, seed: int = 0) -> nn.Module:
    return quantized.quantize(float_model(seed), [example()], engine=engine)


def write(case: Case, path: Path) -> Written:
    model = float_model() if case.engine is None else int8_model(case.engine)
    exported = deploy.export(
        model,
        example(),
        path.with_suffix(case.suffix),
        format=case.format,
        classes=CLASSES,
        mean=[0.1, 0.2, 0.3],
        std=[0.5, 0.6, 0.7],
        about={"trained on": "noise", "epochs": 3, "log": [1.5, None, "ä\n\"'"]},
    )
    return Written(model, exported)


class Reads(nn.Module):
    """Calls a function on its input, and on its children."""

    def __init__(self, function: Callable[..., object], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)
