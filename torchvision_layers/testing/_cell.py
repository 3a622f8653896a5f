"""A cell of the matrix: one sample of one layer in one variant of a check, with what checks build from it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

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

    def other_input(self, batch: int) -> Tensor:
        """An input whose free dimensions all have sizes other than the sample's."""
        shape = list(self.sample.shape)
        for dim in self.sample.free_dims:
            shape[dim] = batch if dim == 0 else shape[dim] + 2 + dim
        return torch.randn(shape)


def randomize(layer: nn.Module) -> nn.Module:
    """Draws vectors (biases, affine weights, statistics), whose defaults, zeros and ones, would hide mistakes."""
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                low = 0.5 if name.endswith("weight") else -0.5
                tensor.uniform_(low, low + 1.0)
    return layer


def run_seeded(layer: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Calls from one seed, so that random layers draw the same."""
    torch.manual_seed(1)
    return layer(input)
