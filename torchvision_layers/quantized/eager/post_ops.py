"""Additions and activations that the convolution before them can compute as a post-operation, found by tracing."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from ..._utils.chains import expand_chain
from ..._utils.modules import has_hooks
from ..._utils.tracing import Trace, find_producer, trace_forward
from ...layers.stochastic_depth import StochasticDepth
from ..layers.observed import Addition
from ..report_row import Int8Support
from .calls import Call
from .fusion import is_transparent
from .patterns import BATCH_NORMS
from .support import int8_support, is_unit
from .wrappers import Int8Child

__all__ = ["ACTIVATIONS", "ConvolutionAndOperation", "PostOp", "find_post_ops", "select_worthwhile"]

#: The oneDNN names of the activations that its convolutions compute. (ReLU has an int8 kernel on every backend.)
ACTIVATIONS: dict[type[nn.Module], str] = {nn.Hardswish: "hardswish", nn.SiLU: "swish"}

# Values per image. torch does not cache kernels with post-operations: starting one takes as long as a hardswish or an
# addition of this many values. (SiLU has no separate int8 kernel, so fusing it is always faster.)
_WORTHWHILE = 2**17


class PostOp(NamedTuple):
    """Names of a convolution and of the operation that it can compute, relative to the module at path ``parent``."""

    parent: str
    convolution: str
    operation: str


def find_post_ops(
    model: nn.Module, calls: dict[nn.Module, Call] | None = None, trace: Trace = trace_forward
) -> list[PostOp]:
    """All post-operations of a fused model, except in modules that int8 does not run.

    Modules that a ``forward`` calls only in part, and convolutions that are registered in several places, are left
    alone.

    Args:
        model: a fused model.
        calls: the calls of its modules, if a batch is known.
        trace: :func:`trace_forward`, or a function with its results.
    """
    registrations = Counter(child for module in model.modules() for child in module._modules.values())
    post_ops: dict[tuple[nn.Module, str], PostOp] = {}  # one entry per operation, even if its module is shared
    shared = {module for module, count in registrations.items() if count > 1}
    for op in _post_ops_below(model, "", shared, trace):
        module = model.get_submodule(op.parent)
        operation = module.get_submodule(op.operation)
        if isinstance(operation, Addition) and operation.broadcasts and not (calls and calls[operation].is_uniform):
            continue  # the kernel adds tensors of one shape
        names = op.convolution.split(".")
        if all(registrations[module.get_submodule(".".join(names[: i + 1]))] == 1 for i in range(len(names))):
            post_ops.setdefault((module, op.operation), op)
    return list(post_ops.values())


def _post_ops_below(model: nn.Module, path: str, shared: set[nn.Module | None], trace: Trace) -> Iterator[PostOp]:
    module = model.get_submodule(path)
    if is_unit(module) or int8_support(module) in (Int8Support.FLOAT_FALLBACK, Int8Support.UNKNOWN):
        return
    if int8_support(module) is Int8Support.FLOAT_FORWARD:
        for name, inner in module.named_modules():
            if isinstance(inner, Int8Child):
                yield from _post_ops_below(model, f"{path}.{name}.module".lstrip("."), shared, trace)
        return
    traced = trace(module)
    for name in traced.whole:
        yield from _post_ops_below(model, f"{path}.{name}".lstrip("."), shared, trace)

    def child(name: str) -> str:
        """The name that ``forward`` calls, of a module or of the container around it."""
        return next(called for called in traced.turns if f"{name}.".startswith(f"{called}."))

    chains = [
        chain
        for names in traced.chains
        for chain in expand_chain(module, names, lambda m: m in shared or not is_transparent(m), trace)
    ]
    candidates = [(chain[i], chain[:i]) for chain in chains for i in range(1, len(chain))]
    for name, before in [*candidates, *traced.pairs]:
        operation = module.get_submodule(name)
        if type(operation) not in (Addition, *ACTIVATIONS) or has_hooks(operation) or hasattr(operation, "excluded_by"):
            continue
        convolution = _last_convolution(module, before, trace)
        if convolution is None or child(convolution) == child(name):  # found in the child as well
            continue
        # The convolution moves to the place of the operation: nothing in between may change its input.
        first = child(before[0])
        later = traced.rereads.get(first, {}) if f"{convolution}.".startswith(f"{first}.") else {}
        between = [other for other, turn in later.items() if turn < traced.turns[child(name)]]
        if all(_keeps_its_input(module, other) for other in between):
            yield PostOp(path, convolution, name)


def select_worthwhile(model: nn.Module, post_ops: list[PostOp], calls: dict[nn.Module, Call]) -> list[PostOp]:
    """The post-operations that are faster even for a single image of the calibration size.

    Args:
        model: fused.
        post_ops: those that the model has.
        calls: the calls of the modules on a batch.
    """

    def is_worthwhile(op: PostOp) -> bool:
        operation = model.get_submodule(op.parent).get_submodule(op.operation)
        return type(operation) is nn.SiLU or (operation in calls and calls[operation].values >= _WORTHWHILE)

    return list(filter(is_worthwhile, post_ops))


class ConvolutionAndOperation(nn.Module):
    """The float computation of a convolution with a post-operation."""

    def __init__(self, convolution: nn.Module, operation: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.operation = operation

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        return self.operation(self.convolution(input), *others)


def _last_convolution(module: nn.Module, names: list[str], trace: Trace) -> str | None:
    """The name of the convolution whose output leaves the chain unchanged."""
    return find_producer(
        module,
        names,
        matches=lambda last: _is_convolution(last) and not has_hooks(last),
        # StochasticDepth is the identity whenever int8 runs.
        is_identity=lambda last: (
            (type(last) is nn.Identity or isinstance(last, StochasticDepth)) and not has_hooks(last)
        ),
        is_opaque=lambda last: is_unit(last) or has_hooks(last),
        trace=trace,
    )


def _keeps_its_input(module: nn.Module, name: str) -> bool:
    """Whether ``name``, of a module or a function, is a convolution, linear layer or addition, fused or not."""
    other = dict(module.named_modules()).get(name)
    return other is not None and (type(other) in BATCH_NORMS or is_unit(other))


def _is_convolution(module: nn.Module) -> bool:
    """Whether the module is a plain convolution, or a convolution fused with a batch norm for training."""
    parts = [type(part) for part in module] if isinstance(module, nn.Sequential) and is_unit(module) else [type(module)]
    return parts in ([nn.Conv2d], [nn.Conv2d, nn.BatchNorm2d]) and (
        (len(parts) == 2 and not hasattr(module, "excluded_by")) or int8_support(module) is Int8Support.CONVERTED
    )
