"""What rows share: when they do not apply, as the machine itself can see, and which parameters they look at."""

import importlib.util

from torch import nn
from torch.nn.parameter import is_lazy

from .._cell import Cell
from .._row import NA

__all__ = [
    "BATCH_STATISTICS",
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


def _has_no_parameters(cell: Cell) -> bool:
    return not trainable(cell.fresh())


def _has_no_floats(cell: Cell) -> bool:
    layer = cell.fresh()
    return not any(tensor.is_floating_point() for tensor in [*layer.parameters(), *layer.buffers()])


def _reads_batch_statistics(cell: Cell) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in cell.fresh().modules())


def _gives_a_view(cell: Cell) -> bool:
    input = cell.input()
    output = cell.layer()(input)
    storage = output.untyped_storage().data_ptr()
    return storage == input.untyped_storage().data_ptr() and output.stride() != input.stride()


NO_PARAMETERS = NA("has no parameters to train", _has_no_parameters)
WAITS = NA(
    "is lazy: before its first batch there is nothing to initialize",
    lambda cell: any(is_lazy(tensor) for tensor in cell.spec.cls(**cell.kwargs()).parameters()),
)
NO_FLOATS = NA("has no parameters and no float buffers", _has_no_floats)
NO_TWIN = NA("has no twin", lambda cell: cell.spec.twin is None)
RANDOM_IN_TRAINING = NA("draws random numbers in training", lambda cell: cell.training and cell.sample.is_random)
BATCH_STATISTICS = NA("has no batch normalization", lambda cell: not _reads_batch_statistics(cell))
VIEW = NA("gives a view of its input, with the layout that follows from it", _gives_a_view)
NOT_AN_IMAGE = NA("input is not an image of four dimensions", lambda cell: len(cell.sample.shape) != 4)


def lacks(*packages: str) -> NA:
    """Not applicable where one of the packages is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return NA(f"not installed: {', '.join(missing)}", lambda cell: bool(missing))


def trainable(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that are not frozen, by name."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if parameter.requires_grad]
