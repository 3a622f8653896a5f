"""A cell of the matrix: one sample of one layer in one variant of a check, with what checks build from it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._spec import LayerSpec, Sample

__all__ = ["Cell", "run_seeded"]


@dataclass(frozen=True)
class Cell:
    """What a check is given."""

    spec: LayerSpec
    sample: Sample
    variant: str = ""

    @property
    def place(self) -> str:
        """The sample, with the variant."""
        return f"{self.sample.id}[{self.variant}]" if self.variant else self.sample.id

    @property
    def training(self) -> bool:
        return self.variant == "train"

    def kwargs(self) -> dict[str, object]:
        """Arguments of the sample; modules among them are copied, so that no check can spoil them for the next.

        Like all that is made in the check, they stand on torch's default device.
        """
        device = torch.get_default_device()
        kwargs = copy.deepcopy(dict(self.sample.kwargs))
        return {name: arg.to(device) if isinstance(arg, nn.Module) else arg for name, arg in kwargs.items()}

    def fresh(self) -> nn.Module:
        """The layer as its constructor leaves it, in the mode of the variant; a lazy one is what it becomes."""
        layer = self.spec.cls(**self.kwargs())
        if any(is_lazy(tensor) for tensor in [*layer.parameters(), *layer.buffers()]):
            with torch.no_grad():
                layer.eval()(torch.zeros(self.sample.shape))  # in eval: statistics are not to count it
        return layer.train(self.training)

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The layer with numbers in its vectors that no default could give."""
        return randomize(self.fresh()).to(dtype)

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.sample.shape, dtype=dtype)

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """The free dimensions of the input, as ``torch.export`` wants them."""
        return ({dim: torch.export.Dim.DYNAMIC for dim in self.sample.free_dims},)

    def other_input(self, batch: int) -> Tensor:
        """An input whose free dimensions all have sizes other than the sample's."""
        shape = list(self.sample.shape)
        for dim in self.sample.free_dims:
            shape[dim] = batch if dim == 0 else shape[dim] + 2 + dim
        return torch.randn(shape)


def randomize(layer: nn.Module) -> nn.Module:
    """Draws vectors, scalars and constants (biases, scales, statistics), whose defaults would hide mistakes."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            is_vector = parameter.numel() == max(parameter.shape, default=1)
            if is_vector or bool((parameter == parameter.flatten()[:1]).all()):
                _draw(name, parameter)
        for name, buffer in layer.named_buffers():
            if name.split(".")[-1] in ("weight", "bias", "running_mean", "running_var"):
                _draw(name, buffer)
    return layer


def _draw(name: str, tensor: Tensor) -> None:
    low = 0.5 if name.endswith(("weight", "running_var")) else -0.5
    tensor.uniform_(low, low + 1.0)


def run_seeded(layer: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Calls from one seed, so that random layers draw the same."""
    torch.manual_seed(1)
    return layer(input)
