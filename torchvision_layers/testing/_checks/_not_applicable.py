"""Predicates for checks that do not apply, and the parameters that checks look at."""

import importlib.util

from torch import nn
from torch.nn.parameter import is_lazy

from .._case import Case
from .._check import NotApplicable

__all__ = [
    "BATCH_STATISTICS",
    "CPU_ONLY",
    "GPU_ONLY",
    "NOT_AN_IMAGE",
    "NO_FLOATS",
    "NO_PARAMETERS",
    "NO_TWIN",
    "RANDOM_IN_TRAINING",
    "TRAIN_EVAL",
    "VIEW",
    "WAITS",
    "lacks",
    "trainable",
]

TRAIN_EVAL = ("train", "eval")


def _has_no_parameters(case: Case) -> bool:
    return not trainable(case.fresh())


def _has_no_floats(case: Case) -> bool:
    layer = case.fresh()
    return not any(tensor.is_floating_point() for tensor in [*layer.parameters(), *layer.buffers()])


def _reads_batch_statistics(case: Case) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in case.fresh().modules())


def _returns_a_view(case: Case) -> bool:
    input = case.input()
    output = case.layer()(input)
    storage = output.untyped_storage().data_ptr()
    return storage == input.untyped_storage().data_ptr() and output.stride() != input.stride()


CPU_ONLY = NotApplicable("runs on CPUs only", lambda case: case.device.type != "cpu", is_of_device=True)
GPU_ONLY = NotApplicable("runs on GPUs only", lambda case: case.device.type != "cuda", is_of_device=True)
NO_PARAMETERS = NotApplicable("has no parameters to train", _has_no_parameters)
WAITS = NotApplicable(
    "is lazy: nothing can be initialized before its first batch",
    lambda case: any(is_lazy(tensor) for tensor in case.spec.cls(**case.kwargs()).parameters()),
)
NO_FLOATS = NotApplicable("has no parameters and no float buffers", _has_no_floats)
NO_TWIN = NotApplicable("has no twin", lambda case: case.spec.twin is None)
RANDOM_IN_TRAINING = NotApplicable(
    "draws random numbers in training", lambda case: case.training and case.sample.is_random
)
BATCH_STATISTICS = NotApplicable("has no batch normalization", lambda case: not _reads_batch_statistics(case))
VIEW = NotApplicable("returns a view of its input, which determines the layout", _returns_a_view)
NOT_AN_IMAGE = NotApplicable("input is not an image with four dimensions", lambda case: len(case.sample.shape) != 4)


def lacks(*packages: str) -> NotApplicable:
    """Not applicable if one of the packages is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return NotApplicable(f"not installed: {', '.join(missing)}", lambda case: bool(missing))


def trainable(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that are not frozen, with their names."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if parameter.requires_grad]
