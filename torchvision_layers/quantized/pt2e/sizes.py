"""Exports of a model for all sizes of its inputs, with symbolic sizes only if the graph depends on them."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import free_symbols, is_concrete_int
from torch.overrides import TorchFunctionMode

from ..._utils import checks
from ..._utils.exporting import export_program, kept_tensors_allowed
from ..._utils.inputs import Inputs
from ..._utils.modules import copy_module
from ..._utils.size_limit import SizeLimit
from ..checks import check_same_results
from .batch_sizes import export_constant_batch
from .fixed_sizes import check_variable_images
from .size_branches import with_best_branch

__all__ = ["SizedGraph", "export_fixed", "export_sized", "output_values", "warn_fixed"]

#: Methods whose results do not depend on sizes, and properties whose results do.
_SIZE_INDEPENDENT = {"dim", "ndimension", "is_floating_point", "is_complex"}
_SIZE_PROPERTIES = {"shape", "nbytes"}


@dataclass(frozen=True)
class SizedGraph:
    """A graph, and the sizes that it takes."""

    graph_module: fx.GraphModule
    #: For each input, the size in each dimension; ``None`` for any size.
    input_sizes: list[tuple[int | None, ...]]
    #: For each tensor of the inputs and of the output, the dimensions that grow with the batch.
    batch_dims: tuple[list[list[int]], list[list[int]]]
    #: Whether the graph has guards that check sizes.
    has_guards: bool


def export_sized(model: nn.Module, pair: Inputs, is_single: bool, dynamic_sizes: bool | None) -> SizedGraph:
    """Exports ``model``, as ``dynamic_sizes`` says, for all sizes, for those of ``pair``, or for what is fast.

    Args:
        model: a copy that takes ``pair``, positional tensors, and returns a tuple.
        pair: inputs with a batch of two, or of as many images as the model needs.
        is_single: whether the first image only is an example.
        dynamic_sizes: see :func:`torchvision_layers.quantized.pt2e.export.export`.

    Errors: ``RuntimeError`` if it cannot be exported, or only for one batch size.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same'")  # of the copy that it makes
        if dynamic_sizes is not False:
            can_be_static = not model.training
            sized = (_export_static(model, pair) if can_be_static else None) or _export_symbolic(
                model, pair, dynamic_sizes
            )
            if sized is not None:
                return sized
        sized = export_fixed(model, pair, is_single)
    if dynamic_sizes is None:
        warn_fixed(pair, "slow; dynamic_sizes=True exports for all sizes")
    return sized


def warn_fixed(pair: Inputs, reason: str) -> None:
    """Warns that a graph takes the sizes of ``pair`` only, because an export for all would be what ``reason`` says."""
    warnings.warn(
        f"the int8 graph takes images of {' x '.join(map(str, pair.args[0].shape[2:]))} only: its forward computes "
        f"sizes in a way that makes an export for all sizes {reason}, dynamic_sizes=False fixes them without this "
        "warning",
        stacklevel=3,
    )


def _export_static(model: nn.Module, pair: Inputs) -> SizedGraph | None:
    """Exports ``model`` with constant sizes if its graph holds for all sizes, or returns ``None``.

    That takes a fraction of the time of an export with symbolic sizes. The graph holds for all sizes if no ``forward``
    reads the size of a tensor, and if the graph computes the same as the model for a larger batch of smaller images.
    Its module checks no sizes.

    Args:
        model: a copy, in eval mode, that takes ``pair``, positional tensors, and returns a tuple.
        pair: see :func:`export_sized`.
    """
    probe = copy_module(model)  # a forward may write to the model, and to its inputs
    two = [_smaller(tensor) for tensor in pair.args]
    three = [_with_more(tensor, _images(pair)) for tensor in two]
    try:
        with torch.no_grad():
            with _SizeReads(probe) as reads:
                outputs = probe(*_clones(two))
            reads.check()
            with kept_tensors_allowed():
                module = torch.export.export(model, pair.args).module(check_guards=False)
            for hooks in (module._forward_pre_hooks, module._forward_hooks):  # they check sizes
                hooks.clear()
            expected = probe(*_clones(three))
            check_same_results(module(*_clones(three)), expected, "a graph with constant sizes differs from the model")
    except Exception:  # if the model is at fault, the export with symbolic sizes reports it
        return None
    sizes = [_static_sizes(probe, two, i) for i in range(len(two))]
    return SizedGraph(module, sizes, (_changed_dims(two, three), _changed_dims(outputs, expected)), has_guards=False)


def _smaller(tensor: Tensor) -> Tensor:
    """Images of half the height and width."""
    for dim in range(2, tensor.dim()):
        size = tensor.shape[dim]
        tensor = tensor.narrow(dim, 0, size // 2) if size > 1 else torch.cat([tensor, tensor], dim)
    return tensor


def _images(pair: Inputs) -> int:
    return next(len(tensor) for tensor in pair.args if tensor.dim())


def _with_more(tensor: Tensor, images: int) -> Tensor:
    """A batch of three instead of two, or of twice as many as ``images``."""
    if not tensor.dim() or len(tensor) != images:
        return tensor
    return torch.cat([tensor, tensor[:1] if images == 2 else tensor])


def _clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _static_sizes(model: nn.Module, inputs: list[Tensor], index: int) -> tuple[int | None, ...]:
    """The sizes that an input of ``model`` must have, which can only be the number of channels."""
    sizes = list[int | None]([None] * inputs[index].dim())
    if len(sizes) > 1:
        widened = _clones(inputs)
        widened[index] = torch.cat([inputs[index], inputs[index]], 1)
        try:
            with torch.no_grad():
                model(*widened)
        except Exception:  # any error of any layer
            sizes[1] = inputs[index].shape[1]
    return tuple(sizes)


def _changed_dims(values: Sequence[Any], others: Sequence[Any]) -> list[list[int]]:
    """For each tensor, the dimensions whose sizes differ."""
    return [
        [dim for dim in range(value.dim()) if value.shape[dim] != other.shape[dim]] if isinstance(value, Tensor) else []
        for value, other in zip(values, others, strict=True)
    ]


class _SizeReadError(Exception):
    """A ``forward`` reads a size."""


class _SizeReads(TorchFunctionMode):
    """Ends a ``forward`` that reads the size of a tensor other than a parameter or buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._is_found = False
        self._weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_number(result) and not (args and id(args[0]) in self._weights):
            # Checks of this package's layers either raise or do nothing.
            is_check = sys._getframe(1).f_globals.get("__name__") == checks.__name__
            self._is_found |= _depends_on_size(func) and not is_check
            self.check()
        return result

    def check(self) -> None:
        """Raises if there was one: the ``forward`` may have caught the error."""
        if self._is_found:
            raise _SizeReadError


def _is_number(result: object) -> bool:
    items = result if isinstance(result, (tuple, list)) else [result]
    return any(isinstance(item, (bool, int, float)) for item in items)


def _depends_on_size(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return func.__self__.__name__ in _SIZE_PROPERTIES
    return name not in _SIZE_INDEPENDENT


def _export_symbolic(model: nn.Module, pair: Inputs, dynamic_sizes: bool | None) -> SizedGraph | None:
    """Exports ``model`` with symbolic sizes, or returns ``None`` if that would be slow and ``dynamic_sizes`` allows it.

    Errors: ``RuntimeError`` if it cannot be exported, or only for one size of the batch or of images.
    """
    limit = SizeLimit()
    # A size of one may be broadcast, which no variable size could be.
    auto = torch.export.Dim.AUTO
    sizes = [{dim: auto for dim, size in enumerate(x.shape) if dim == 0 or size > 1} for x in pair.args]
    try:
        with limit if dynamic_sizes is None else nullcontext():
            program = export_program(model, pair, sizes, drops_batch_guards=True)
            program = program if model.training else with_best_branch(program, model, pair, sizes)
        sized = _sized(program.module())
        check_variable_images(_input_values(sized.graph_module), model, pair)
        return sized
    except RuntimeError:
        if not limit.is_exceeded:
            raise
        return None


def export_fixed(model: nn.Module, pair: Inputs, is_single: bool) -> SizedGraph:
    """Exports ``model`` for every batch of images of this size.

    Args:
        model: a copy that takes ``pair``, positional tensors, and returns a tuple.
        pair: see :func:`export_sized`.
        is_single: whether the first image only is an example.

    Errors: ``RuntimeError`` if it cannot be exported, or only for one batch size.
    """
    images = _images(pair)
    has_batch = [tensor.dim() > 0 and len(tensor) == images for tensor in pair.args]
    if not model.training:
        # The example itself is compared later.
        others = pair.args
        if images > 2:
            others = tuple(_with_more(tensor, images) for tensor in pair.args)
        elif not is_single:
            others = tuple(x[:1] if b else x for x, b in zip(pair.args, has_batch, strict=True))
        probe = copy_module(model)
        try:
            with torch.no_grad():
                module = export_constant_batch(model, pair.args, has_batch)
                expected = probe(*_clones(others))
                check_same_results(module(*_clones(others)), expected, "a graph for one batch differs from the model")
        except Exception:  # if the model is at fault, the export with a symbolic batch reports it
            pass
        else:
            dims = ([[0] if b else [] for b in has_batch], _changed_dims(output_values(module), expected))
            shapes = [list[int | None](tensor.shape) for tensor in pair.args]
            sizes = [(None, *shape[1:]) if b else tuple(shape) for shape, b in zip(shapes, has_batch, strict=True)]
            return SizedGraph(module, sizes, dims, has_guards=False)
    dynamic = [{0: torch.export.Dim.AUTO} if b else {} for b in has_batch]
    return _sized(export_program(model, pair, dynamic).module())


def _sized(module: fx.GraphModule) -> SizedGraph:
    inputs, outputs = _input_values(module), output_values(module)
    batch = next(tensor.shape[0] for tensor in inputs if tensor.dim())
    if is_concrete_int(batch):
        raise RuntimeError("model cannot be exported for every batch: its forward depends on the size of the batch")
    sizes = [tuple(int(size) if is_concrete_int(size) else None for size in tensor.shape) for tensor in inputs]
    dims = (_symbolic_dims(batch, inputs), _symbolic_dims(batch, outputs))
    return SizedGraph(module, sizes, dims, has_guards=True)


def _input_values(module: fx.GraphModule) -> list[Any]:
    return [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]


def output_values(module: fx.GraphModule) -> list[Any]:
    """The tensors and numbers of the output, as the export traced them."""
    results: Any = module.graph.output_node().args[0]
    return [result.meta["val"] if isinstance(result, fx.Node) else result for result in results]


def _symbolic_dims(batch: torch.SymInt, values: list[Any]) -> list[list[int]]:
    symbols = free_symbols(batch)
    return [
        [dim for dim, size in enumerate(value.shape) if free_symbols(size) & symbols]
        if isinstance(value, Tensor)
        else []
        for value in values
    ]
