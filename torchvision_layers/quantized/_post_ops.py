"""Which additions and activations the convolution before them can compute on its way out: found by tracing."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from ..layers.stochastic_depth import StochasticDepth
from ._chains import at_end, calls
from ._fusing import NORMS
from ._kernels import Kernel, has_hooks, is_unit, kernel
from ._observed import Addition

__all__ = ["ACTIVATIONS", "PostOp", "post_ops", "worthwhile"]

#: What oneDNN calls the activations that its convolutions compute. (Int8 has a kernel for ReLU on every backend.)
ACTIVATIONS: dict[type[nn.Module], str] = {nn.Hardswish: "hardswish", nn.SiLU: "swish"}

# Values of one image. torch keeps no kernel with post-operations ready: to start one takes as long as a hardswish of
# so many values, or the addition of them. (SiLU has no int8 kernel of its own, and is better off in any case.)
_WORTHWHILE = 2**17


class PostOp(NamedTuple):
    """Names of a convolution and of what it can compute as well, below the module at path ``parent``."""

    parent: str
    convolution: str
    operation: str


def post_ops(model: nn.Module) -> list[PostOp]:
    """All post-operations of a fused model, but those below modules that int8 does not run.

    Those below a module of which ``forward`` calls only a part are left alone as well, and convolutions that stand at
    two places.
    """
    places = Counter(child for module in model.modules() for child in module._modules.values())
    found: dict[tuple[nn.Module, str], PostOp] = {}  # a module at two places has each once
    for op in _below(model, ""):
        module = model.get_submodule(op.parent)
        names = op.convolution.split(".")
        if all(places[module.get_submodule(".".join(names[: i + 1]))] == 1 for i in range(len(names))):
            found.setdefault((module, op.operation), op)
    return list(found.values())


def _below(model: nn.Module, path: str) -> Iterator[PostOp]:
    module = model.get_submodule(path)
    if is_unit(module) or kernel(module) in (Kernel.ISLAND, Kernel.UNKNOWN):
        return
    called = calls(module)
    for name in called.whole:
        yield from _below(model, f"{path}.{name}".lstrip("."))
    candidates = [(chain[i], chain[:i]) for chain in called.chains for i in range(1, len(chain))]
    for name, before in [*candidates, *called.pairs]:
        operation = module.get_submodule(name)
        if type(operation) not in (Addition, *ACTIVATIONS) or has_hooks(operation):
            continue
        convolution = _convolution_at_end(module, before)
        if convolution is None:
            continue
        # It moves to the place of the operation: until then nothing else may get its input that could change it.
        first = before[0]
        later = called.rereads.get(first, {}) if f"{convolution}.".startswith(f"{first}.") else {}
        between = [other for other, turn in later.items() if turn < called.turns[name]]
        if all(_leaves_its_input(module, other) for other in between):
            yield PostOp(path, convolution, name)


def worthwhile(model: nn.Module, found: list[PostOp], example: Tensor) -> list[PostOp]:
    """Those that are faster as post-operations even where one image runs, of the size of ``example``.

    None where a ``forward`` that cannot be traced uses outputs of convolutions in yet another way.
    """
    sizes: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: object, output: Tensor) -> None:
        sizes[module] = output[0].numel()

    operations = [model.get_submodule(op.parent).get_submodule(op.operation) for op in found]
    handles = [operation.register_forward_hook(note) for operation in operations]
    expected = model(example[:1])
    for handle in handles:
        handle.remove()
    worth = [
        op
        for op, operation in zip(found, operations, strict=True)
        if type(operation) is nn.SiLU or sizes.get(operation, 0) >= _WORTHWHILE
    ]
    return worth if _is_same(model, worth, example[:1], expected) else []


class _Both(nn.Module):
    """What a convolution with a post-operation computes, in float."""

    def __init__(self, convolution: nn.Module, operation: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.operation = operation

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        return self.operation(self.convolution(input), *others)


def _is_same(model: nn.Module, found: list[PostOp], input: Tensor, expected: Tensor) -> bool:
    """Whether the model gives the same with the post-operations in their convolutions."""
    parents = [model.get_submodule(op.parent) for op in found]
    pairs = [
        (parent.get_submodule(op.convolution), parent.get_submodule(op.operation))
        for parent, op in zip(parents, found, strict=True)
    ]
    for parent, op, (convolution, operation) in zip(parents, found, pairs, strict=True):
        parent.set_submodule(op.convolution, nn.Identity())
        parent.set_submodule(op.operation, _Both(convolution, operation).eval())
    try:
        got = model(input)
    except (RuntimeError, ValueError):  # of shapes that do not fit any more
        return False
    finally:
        for parent, op, (convolution, operation) in zip(parents, found, pairs, strict=True):
            parent.set_submodule(op.convolution, convolution)
            parent.set_submodule(op.operation, operation)
    return got.shape == expected.shape and float((got - expected).abs().max()) <= 1e-3 * float(expected.abs().max())


def _convolution_at_end(module: nn.Module, names: list[str]) -> str | None:
    """The name of the convolution whose output comes out of the last of these modules unchanged."""
    return at_end(
        module,
        names,
        ends=lambda last: _is_convolution(last) and not has_hooks(last),
        # StochasticDepth is the identity wherever int8 runs.
        passes=lambda last: (type(last) is nn.Identity or isinstance(last, StochasticDepth)) and not has_hooks(last),
        is_closed=lambda last: is_unit(last) or has_hooks(last),
    )


def _leaves_its_input(module: nn.Module, name: str) -> bool:
    """Whether a name, of a module or of a function, is that of a convolution, projection or sum, fused or not."""
    other = dict(module.named_modules()).get(name)
    return other is not None and (type(other) in NORMS or is_unit(other))


def _is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution, or one fused with a batch norm for training, and nothing more."""
    kinds = [type(part) for part in module] if isinstance(module, nn.Sequential) and is_unit(module) else [type(module)]
    return kinds in ([nn.Conv2d], [nn.Conv2d, nn.BatchNorm2d]) and (
        len(kinds) == 2 or kernel(module) is Kernel.CONVERTED
    )
