"""Models and batches for the tests of exported graphs."""

import copy
import functools

import torch
from torch import Tensor, fx, nn

from torchvision_layers import nn as tnn
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.pt2e.model import QuantizableGraph
from torchvision_layers.quantized.settings import Settings

__all__ = [
    "FunctionModule",
    "batches",
    "calibrated",
    "call_nodes",
    "int8",
    "sgd",
    "small_model",
    "tiny_model",
    "train_step",
    "with_running_stats",
    "without_quantization",
]


def small_model() -> nn.Sequential:
    return with_running_stats(
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


def tiny_model() -> nn.Sequential:
    """Fewer blocks than :func:`small_model`, for tests whose time is mostly that of the export."""
    return with_running_stats(
        nn.Sequential(
            tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.SiLU),
            tnn.BasicBlock(8, 16, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            tnn.LinearDropoutAct(16, 4, dropout=0.1, activation_layer=None),
        )
    ).eval()


def with_running_stats(model: nn.Module) -> nn.Module:
    """Give the batch norms random statistics and affine parameters, as after some training."""
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
    return workflow.quantize(model, iter([Inputs((input,)) for input in inputs]), Settings("x86", allow_float))


@functools.cache
def _calibrated() -> tuple[nn.Sequential, list[Tensor], QuantizableGraph]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model, inputs = small_model(), batches()
        return model, inputs, int8(model, inputs)


def calibrated() -> tuple[nn.Sequential, list[Tensor], QuantizableGraph]:
    """A small model, its batches and a copy of its int8 graph, which is exported once."""
    model, inputs, graph = _calibrated()
    return model, inputs, copy.deepcopy(graph)


def call_nodes(graph: QuantizableGraph, name: str) -> list[fx.Node]:
    """Nodes of the graph that call the operator ``name``, in place or not."""
    return [node for node in graph.body.graph.nodes if f".{name}." in str(node.target).replace("_.", ".")]


def train_step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def without_quantization(graph: QuantizableGraph) -> QuantizableGraph:
    """Disable the fake quantization of a prepared graph."""
    for key, buffer in graph.named_buffers():
        if key.endswith("fake_quant_enabled"):
            buffer.zero_()
    return graph


class FunctionModule(nn.Module):
    """Calls a function with itself, so that it can read its children, and with the input."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)
