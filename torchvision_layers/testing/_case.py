"""A case: one sample of one layer in one variant of a check, and the layers and inputs that checks build from it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._spec import LayerSpec, Sample

__all__ = ["Case", "PerLayerCache", "loss_of", "random_states", "run_seeded"]

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """The argument of a check."""

    spec: LayerSpec
    sample: Sample
    variant: str = ""
    #: The device of the layer and its input. Both are made on the CPU, so that they are the same on every device.
    device: torch.device = CPU

    @property
    def id(self) -> str:
        """The id of the sample, followed by the variant in brackets."""
        return f"{self.sample.id}[{self.variant}]" if self.variant else self.sample.id

    @property
    def training(self) -> bool:
        return self.variant == "train"

    def kwargs(self) -> dict[str, object]:
        """Arguments of the sample. Modules are copied, so a check cannot affect the next one.

        Copies are on torch's default device, like the layer that is built from them.
        """
        device = torch.get_default_device()
        kwargs = copy.deepcopy(dict(self.sample.kwargs))
        return {name: arg.to(device) if isinstance(arg, nn.Module) else arg for name, arg in kwargs.items()}

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device of the case. Under ``torch.device("meta")`` it stays there."""
        return module if torch.get_default_device().type == "meta" else module.to(self.device)

    def fresh(self) -> nn.Module:
        """The layer as its constructor leaves it, in the mode of the variant. A lazy layer is materialized."""
        return self.place(self._build())

    def _build(self) -> nn.Module:
        layer = self.sample.adapt(self.spec.cls(**self.kwargs()))
        if any(is_lazy(tensor) for tensor in [*layer.parameters(), *layer.buffers()]):
            with torch.no_grad():
                layer.eval()(torch.zeros(self.sample.shape))  # in eval mode, so that statistics do not count it
        return layer.train(self.training)

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The layer with random vectors, which no default could produce."""
        return self.place(randomize(self._build())).to(dtype)

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.sample.shape, dtype=dtype).to(self.device)

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """The free dimensions of the input, in the form that ``torch.export`` takes."""
        return ({dim: torch.export.Dim.DYNAMIC for dim in self.sample.free_dims},)

    def other_input(self, batch: int) -> Tensor:
        """An input whose free dimensions all differ in size from the sample's."""
        shape = list(self.sample.shape)
        for dim in self.sample.free_dims:
            shape[dim] = batch if dim == 0 else shape[dim] + 2 + dim
        return torch.randn(shape).to(self.device)


class PerLayerCache(Generic[T]):
    """Caches a function of cases for the current layer, so that checks share what takes long to build."""

    def __init__(self, function: Callable[[Case], T]) -> None:
        self._function = function
        self._spec: LayerSpec | None = None
        self._results: list[tuple[Sample, str, torch.device, T]] = []

    def __call__(self, case: Case) -> T:
        if case.spec is not self._spec:
            self._spec, self._results = case.spec, []
        for sample, variant, device, result in self._results:
            if sample is case.sample and variant == case.variant and device == case.device:
                return result
        torch.manual_seed(0)  # independent of the check that runs first
        result = self._function(case)
        self._results.append((case.sample, case.variant, case.device, result))
        return result


def randomize(layer: nn.Module) -> nn.Module:
    """Draw vectors, scalars and constants (biases, scales, statistics), because their defaults would hide mistakes."""
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


def random_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that a layer on this device can draw from."""
    states = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def run_seeded(layer: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Call the layer from a fixed seed, so that random layers draw the same numbers."""
    torch.manual_seed(1)
    return layer(input)


def loss_of(output: Tensor) -> Tensor:
    """A loss to differentiate. After a norm, a sum of squares is constant, and its gradient rounding alone."""
    return output.pow(3).sum()
