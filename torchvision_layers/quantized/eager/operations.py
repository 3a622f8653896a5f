"""Tensor operations in a ``forward``, and the module that takes the place of each in an int8 model."""

import dataclasses
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch
import torch.fx
import torchvision.ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.tracing import check_items, check_passed
from ..layers.observed import Addition, Concatenation, Multiplication
from ..report_row import Int8Support
from .first_run import WEIGHTED, Arguments
from .in_place import UnsupportedError
from .int8_pools import interpolate
from .support import int8_support
from .wrappers import FloatOperation

__all__ = ["Kind", "Kinds", "Operation", "OwnWeightError", "kind_of", "replacement", "takes_int8"]

Target = Callable[..., Any] | str

_ADDITIONS: set[Target] = {operator.add, torch.add, "add"}
_MULTIPLICATIONS: set[Target] = {operator.mul, torch.mul, torch.multiply, "mul", "multiply"}
_CONCATENATIONS: set[Target] = {torch.cat, torch.concat, torch.concatenate}

#: Elementwise functions and methods of one tensor, with the module that computes the same.
_ELEMENTWISE: dict[Target, type[nn.Module]] = {
    F.celu: nn.CELU,
    F.elu: nn.ELU,
    F.gelu: nn.GELU,
    F.hardsigmoid: nn.Hardsigmoid,
    F.hardswish: nn.Hardswish,
    F.hardtanh: nn.Hardtanh,
    F.leaky_relu: nn.LeakyReLU,
    F.mish: nn.Mish,
    F.relu: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.selu: nn.SELU,
    F.sigmoid: nn.Sigmoid,
    F.silu: nn.SiLU,
    F.softplus: nn.Softplus,
    F.tanh: nn.Tanh,
    torch.relu: nn.ReLU,
    torch.sigmoid: nn.Sigmoid,
    torch.tanh: nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
_DROPOUTS: dict[Target, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}

#: Pools, with the module that computes the same, whose int8 form avoids faults of torch's kernels.
_POOLS: dict[Target, Callable[..., nn.Module]] = {
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.interpolate: nn.Upsample,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
}

#: Operations that move, select or average values: their int8 kernels keep scale and zero point. So does that of a mean,
#: whose range is often far smaller, and most backends compute it in float.
_KEEP_SCALE: set[Target] = {
    F.adaptive_avg_pool3d,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    torch.clone,
    torch.flatten,
    torch.movedim,
    torch.permute,
    torch.reshape,
    torch.squeeze,
    torch.transpose,
    torch.unflatten,
    torch.unsqueeze,
    *("clone", "contiguous", "detach", "expand", "expand_as", "flatten", "movedim", "permute", "reshape"),
    *("squeeze", "transpose", "unflatten", "unsqueeze"),
}
_SPLITS: set[Target] = {torch.chunk, torch.split, torch.tensor_split, torch.unbind}
_SPLITS |= {"chunk", "split", "tensor_split", "unbind"}
#: ``view`` also works on memory in rows of channels, in which int8 kernels return images, if it becomes ``reshape``.
_VIEWS: dict[Target, str] = {"view": "reshape", "view_as": "reshape_as"}
#: Questions about a tensor.
_QUERIES: set[Target] = {
    check_items,
    check_passed,
    torch.numel,
    "dim",
    "is_contiguous",
    "is_floating_point",
    "ndimension",
    "numel",
    "size",
    "stride",
}
_ATTRIBUTES = {"device", "dtype", "is_cuda", "is_quantized", "itemsize", "layout", "ndim", "requires_grad", "shape"}
#: Attributes that compute with the values of a tensor, which is complex then.
_PARTS = {"imag", "real"}
#: Names of functions and methods that return integers or truth values.
_DISCRETE = {
    *("all", "any", "argmax", "argmin", "argsort", "eq", "ge", "gt", "isfinite", "isinf", "isnan", "le", "lt", "ne"),
    *("logical_and", "logical_not", "logical_or", "nonzero", "count_nonzero", "bool", "int", "long", "item"),
}


class OwnWeightError(UnsupportedError):
    """A convolution or linear layer in a ``forward``, which has no module to become int8."""


class Kind(Enum):
    """The kind of value that a node of a graph holds."""

    ACTIVATION = "a tensor that depends on the input, int8 in the int8 model"
    SEQUENCE = "a sequence of activations"
    CONSTANT = "a parameter or buffer, or computed from these only: float in the int8 model"
    OTHER = "a number, a shape, a mask, indices"


Kinds = dict[torch.fx.Node, Kind]


def kind_of(module: nn.Module, node: torch.fx.Node, kinds: Kinds, arguments: Arguments | None) -> Kind:
    """The kind of ``node``, from the kinds of the nodes before it and from the arguments that calls pass, if known."""
    if node.op == "get_attr":
        if not hasattr(module, str(node.target).partition(".")[0]):
            raise UnsupportedError("creates a tensor of constants")
        if isinstance(_owner(module, node), CONV_AND_LINEAR):
            raise UnsupportedError(f"reads {node.target} instead of calling its module")
        value = operator.attrgetter(str(node.target))(module)
        return Kind.CONSTANT if isinstance(value, Tensor) else Kind.OTHER
    if node.op == "placeholder":
        if arguments is None:  # arguments with defaults are traced with these
            return Kind.OTHER if node.args else Kind.ACTIVATION
        return Kind.ACTIVATION if arguments.holds_floats(str(node.target).strip("*")) else Kind.OTHER
    if node.op == "call_module":
        return Kind.ACTIVATION
    inputs = {kinds[argument] for argument in node.all_input_nodes}
    if node.op == "output" or not inputs & _INT8:
        return Kind.CONSTANT if Kind.CONSTANT in inputs else Kind.OTHER
    if _is_query(node) or _name(node) in _DISCRETE:
        return Kind.OTHER
    return Kind.SEQUENCE if node.target in _SPLITS or _is_container(node.target) else Kind.ACTIVATION


_INT8 = {Kind.ACTIVATION, Kind.SEQUENCE}


def takes_int8(node: torch.fx.Node, kinds: Kinds) -> bool:
    """Whether ``node`` is an operation, not a query, on tensors that are int8 in the int8 model."""
    is_operation = node.op in ("call_function", "call_method")
    return is_operation and not _is_query(node) and any(kinds[argument] in _INT8 for argument in node.all_input_nodes)


def _is_query(node: torch.fx.Node) -> bool:
    return node.target in _QUERIES or (node.target is getattr and node.args[1] in _ATTRIBUTES)


def _is_container(target: Target) -> bool:
    """Whether ``target`` is the class of an object that holds tensors as they are."""
    return isinstance(target, type) and (issubclass(target, (OrderedDict, tuple)) or dataclasses.is_dataclass(target))


def _name(node: torch.fx.Node) -> str:
    target: Any = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "operation").strip("_")


class Operation(NamedTuple):
    """A module that computes a node, a name for it, and its inputs."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def replacement(
    module: nn.Module, node: torch.fx.Node, kinds: Kinds, allow_float: bool, training: bool
) -> Operation | None:
    """The operation that computes ``node``; ``None`` if the node can stay, because it takes int8 tensors or none.

    Errors: ``UnsupportedError`` if no operation can; ``OwnWeightError`` for a convolution or linear layer, unless
    ``allow_float`` is set.
    """
    if not takes_int8(node, kinds):
        return None
    target: Any = node.target
    name = _name(node)
    if node.op == "call_method" and not hasattr(Tensor, target):
        raise UnsupportedError(f"calls {target}, which is no method of a tensor")
    computed = _module(node, kinds, training)
    if computed is not None:
        return Operation(type(computed[0]).__name__.lower(), *computed, {})
    is_part = target is getattr and node.args[1] in _PARTS
    if (target is getattr and not is_part) or _is_container(target):
        return None
    inputs = {kinds[argument] for argument in node.all_input_nodes}
    if Kind.CONSTANT not in inputs and (_keeps_scale(node) or target in _SPLITS or target is operator.getitem):
        return None
    if target in WEIGHTED and not allow_float:
        raise OwnWeightError(f"calls {name} with a weight of its own")
    return Operation(name, FloatOperation(target), node.args, dict(node.kwargs))


def _owner(module: nn.Module, node: torch.fx.Node) -> nn.Module | None:
    """The child that a parameter belongs to."""
    path = str(node.target).rpartition(".")[0]
    return module.get_submodule(path) if path else None


def _module(node: torch.fx.Node, kinds: Kinds, training: bool) -> tuple[nn.Module, tuple[Any, ...]] | None:
    """The module that computes a node from its tensors alone, and these; ``None`` if there is none."""
    target: Any = node.target
    inputs = {kinds[argument] for argument in node.all_input_nodes}
    if target in _CONCATENATIONS:
        bound = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
        dim = bound.get("dim", bound.get("axis", 0))
        return (Concatenation(dim), (bound["tensors"],)) if isinstance(dim, int) and inputs <= _INT8 else None
    if not node.args or inputs != {Kind.ACTIVATION}:
        return None
    tensors = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
    if len(tensors) == 2 and len(node.args) == 2 and not node.kwargs:
        if target in _ADDITIONS:
            return Addition(broadcasts=True), node.args
        return (Multiplication(), node.args) if target in _MULTIPLICATIONS else None
    if len(node.all_input_nodes) > 1 or not tensors:
        return None
    if target in _POOLS:
        pool = _pool(node)
        return (pool, node.args[:1]) if pool and int8_support(pool) is Int8Support.PASS_THROUGH else None
    if target in _ELEMENTWISE:
        return _ELEMENTWISE[target](*node.args[1:], **node.kwargs), node.args[:1]
    if target not in _DROPOUTS and target is not torchvision.ops.stochastic_depth:
        return None
    signature = inspect.signature(target).bind(*node.args, **node.kwargs)
    signature.apply_defaults()
    arguments = signature.arguments
    if arguments["training"] is not training:
        mode = "training" if training else "eval"
        raise UnsupportedError(f"calls {_name(node)} with training={arguments['training']} in {mode} mode")
    if target in _DROPOUTS:
        return _DROPOUTS[target](arguments["p"]), node.args[:1]
    return torchvision.ops.StochasticDepth(arguments["p"], arguments["mode"]), node.args[:1]


_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_INTERPOLATE = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")


def _pool(node: torch.fx.Node) -> nn.Module | None:
    """The module of a function in ``_POOLS``; ``None`` if there is none with these arguments."""
    target: Any = node.target
    if target in (F.max_pool1d, F.max_pool2d):  # the module takes them in another order
        return _POOLS[target](**(dict(zip(_MAX_POOL, node.args[1:], strict=False)) | node.kwargs))
    if target is F.interpolate:
        bound: dict[str, Any] = dict(zip(_INTERPOLATE, node.args[1:], strict=False)) | node.kwargs
        return None if bound.pop("antialias", False) else nn.Upsample(**bound)
    return _POOLS[target](*node.args[1:], **node.kwargs)


def _keeps_scale(node: torch.fx.Node) -> bool:
    """Whether the int8 kernel for these arguments keeps scale and zero point. ``view`` becomes ``reshape``."""
    bound: dict[str, Any] = dict(node.kwargs)
    if node.target is F.interpolate:
        bound |= zip(_INTERPOLATE, node.args[1:], strict=False)
        mode, size = bound.get("mode", "nearest"), bound.get("size")
        if mode not in {"nearest", "bilinear"} or size is None or bound.get("antialias"):
            return False
        kwargs = {"size": size, "mode": mode, "align_corners": bound.get("align_corners")}
        node.target, node.args, node.kwargs = interpolate, node.args[:1], kwargs
        return True
    if node.target is F.pad:  # ranges contain zero
        bound |= zip(("", "", "mode", "value"), node.args, strict=False)
        return bound.get("mode", "constant") == "constant" and bound.get("value") in (None, 0)
    if node.target in _VIEWS:
        node.target = _VIEWS[node.target]
        return True
    return node.target in _KEEP_SCALE
