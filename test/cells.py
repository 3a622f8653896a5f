"""Building the layers of the specs for the matrix."""

import copy
from collections.abc import Callable

import pytest
import torch
from layer_specs import SPECS, LayerSpec, Sample
from torch import Tensor, nn

__all__ = ["CELLS", "both_modes", "build", "build_kwargs", "each_sample", "make_input", "other_sizes", "run"]

CELLS = [pytest.param(spec, sample, id=f"{spec.cls.__name__}-{sample.id}") for spec in SPECS for sample in spec.samples]
each_sample = pytest.mark.parametrize(("spec", "sample"), CELLS)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def build_kwargs(sample: Sample) -> dict[str, object]:
    """Arguments of the sample; modules among them are copied, so that no test can spoil them for the next."""
    return copy.deepcopy(dict(sample.kwargs))


def build(spec: LayerSpec, sample: Sample, training: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The layer with numbers in its vectors that no default could give."""
    layer = spec.cls(**build_kwargs(sample), dtype=dtype)
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                low = 0.5 if name.endswith("weight") else -0.5
                tensor.uniform_(low, low + 1.0)
    return layer.train(training)


def make_input(sample: Sample, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sample.shape, dtype=dtype)


def other_sizes(sample: Sample, batch: int) -> Tensor:
    """An input whose dynamic dimensions all have sizes other than the sample's."""
    shape = list(sample.shape)
    for dim in sample.dynamic_dims:
        shape[dim] = batch if dim == 0 else shape[dim] + 2 + dim
    return torch.randn(shape)


def run(layer: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Calls from one seed, so that random layers draw the same."""
    torch.manual_seed(1)
    return layer(input)
