"""Models and batches for the tests of exported graphs."""

import torch
from torch import Tensor, fx, nn

from torchvision_layers import nn as tnn
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.pt2e.model import QuantizableGraph

__all__ = ["Reads", "batches", "calls", "int8", "sgd", "small_model", "step", "with_statistics", "without_quantization"]


def small_model() -> nn.Sequential:
    return with_statistics(
        nn.Sequential(
            tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.SiLU),
            tnn.BasicBlock(8, 16, 2),
            tnn.BasicBlock(16, 16, se_layer=tnn.SqueezeExcitation),
            tnn.InvertedResidual(16, 16, 1, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            tnn.LinearDropoutAct(16, 6, dropout=0.1),
            nn.Linear(6, 4),
        )
    ).eval()


def with_statistics(model: nn.Module) -> nn.Module:
    """The model with batch norms as after some training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return model


def batches() -> list[Tensor]:
    return [torch.randn(16, 3, 20, 20) for _ in range(2)]


def int8(model: nn.Module, inputs: list[Tensor], allow_float: bool = False) -> QuantizableGraph:
    return workflow.quantize(model, iter(inputs), "x86", allow_float)


def calls(graph: QuantizableGraph, name: str) -> list[fx.Node]:
    """Nodes of a graph that call the operator ``name``, in place or not."""
    return [node for node in graph.body.graph.nodes if f".{name}." in str(node.target).replace("_.", ".")]


def step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def without_quantization(graph: QuantizableGraph) -> QuantizableGraph:
    for key, buffer in graph.named_buffers():
        if key.endswith("fake_quant_enabled"):
            buffer.zero_()
    return graph


class Reads(nn.Module):
    """Calls a function on its input, and on its children."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)
