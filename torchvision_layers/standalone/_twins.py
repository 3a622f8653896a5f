"""What makes a standalone file quantizable: source for it to take along, on torch and its ``torch.ao.quantization``."""

from collections.abc import Callable
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules, fuse_modules_qat

from .._utils.checks import check_same_shape

__all__ = ["Addition", "DeQuantStub", "Multiplication", "QuantStub", "QuantizableLayer", "QuantizableModel"]

# The batch norm that folds into each kind of convolution or projection.
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}

# Modules of torch that have an int8 form, or take int8 tensors as they are. All others run in float.
_IN_INT8 = {
    *_NORMS,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.ChannelShuffle,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.ELU,
    nn.Flatten,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.Tanh,
    nn.Unflatten,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.ZeroPad2d,
}


# What a forward may raise when it is traced.
_NOT_TRACED = (AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)


class Addition(nn.Module):
    """The sum of two tensors of one shape, and its ReLU where one is fused into it."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = FloatFunctional()
        self.relu = False

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        check_same_shape("input", input, other, "other")
        if self.relu:
            return self.functional.add_relu(input, other)
        return self.functional.add(input, other)


class Multiplication(nn.Module):
    """The product of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = FloatFunctional()

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return self.functional.mul(input, other)


class FloatIsland(nn.Module):
    """Runs in float a module that has no int8 kernel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.dequant = DeQuantStub()
        self.module = module
        self.quant = QuantStub()
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao reads it as "leave this alone"
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.quant(self.module(self.dequant(input)))


class QuantizableLayer(nn.Module):
    """Mixed into a float layer to make its twin: sums and products of tensors become modules, which can be observed."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._add_functionals()

    def _complete(self) -> None:
        """The end of the constructors of twins in the package; here all is done already."""

    def _add_functionals(self) -> None:
        """Adds the modules that observe arithmetic between tensors."""

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses its own children in place, and those below them, as :meth:`QuantizableModel.fuse_model` does."""
        fuse_children(self, self.training if is_qat is None else is_qat)


class QuantizableModel(nn.Module):
    """A model between a stub that quantizes its input and one that dequantizes its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.entry = QuantStub()
        self.model = model
        self.exit = DeQuantStub()
        self.train(model.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.exit(self.model(self.entry(input)))

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses convolutions with what follows them, and lets run in float what has no int8 form, in place.

        ``torch.ao.quantization.prepare`` (or ``prepare_qat``) and ``convert`` come next. A second call changes nothing.
        A ``forward`` that cannot be traced is taken to call its children as wholes.

        Args:
            is_qat: ``True`` fuses for quantization-aware training, which keeps the batch norms; ``False`` folds them
                and needs eval mode; ``None`` follows ``self.training``.
        """
        fuse_children(self.model, self.training if is_qat is None else is_qat)
        _add_islands(self)


class _ShallowTracer(torch.fx.Tracer):
    """Looks into no module below the one that it traces, but through one that is made in passing (a slice)."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not any(m is known for known in self.root.modules()):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _calls(module: nn.Module) -> tuple[list[list[str]], list[str]]:
    """Names of modules of which each feeds the next and nothing else, and of all that a ``forward`` calls whole."""
    try:
        graph = _ShallowTracer().trace(module)
    except _NOT_TRACED:  # it is taken to call its children as wholes
        return [], [name for name, _ in module.named_children()]
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    touched = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    whole = [str(node.target) for node in nodes if not any(name.startswith(f"{node.target}.") for name in touched)]
    chains: dict[torch.fx.Node, list[str]] = {}
    for node in nodes:
        if whole.count(str(node.target)) != 1:
            continue
        before = node.all_input_nodes[0] if node.all_input_nodes else node
        follows = node.args == (before,) and not node.kwargs and len(before.users) == 1
        chains[node] = chains[before] if follows and before in chains else []
        chains[node].append(str(node.target))
    return list({id(chain): chain for chain in chains.values()}.values()), list(dict.fromkeys(whole))


def fuse_children(module: nn.Module, is_qat: bool) -> None:
    """Fuses the chains of modules that ``module.forward`` calls in place, then those below each of them."""
    chains, whole = _calls(module)
    for names in chains:
        for start in range(len(names) - 1):
            _fuse_first(module, names[start:], is_qat)
    for name in whole:
        child = module.get_submodule(name)
        if not type(child).__module__.startswith("torch.ao."):
            fuse_children(child, is_qat)


def _fuse_first(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses a convolution or projection with the norm and the ReLU that follow it, or a sum with its ReLU."""
    modules = [parent.get_submodule(name) for name in names]
    first = modules[0]
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules[:2]):
        return
    if isinstance(first, Addition) and type(modules[1]) is nn.ReLU:
        first.relu = True
        parent.set_submodule(names[1], nn.Identity().train(first.training))
    if type(first) not in _NORMS:
        return
    group, can_take_norm = [names[0]], True
    for name, module in zip(names[1:], modules[1:], strict=True):
        if module._forward_hooks or module._forward_pre_hooks:
            break
        if type(module) is nn.Dropout and type(first) is nn.Linear:
            can_take_norm = False  # the identity in eval; in training it commutes with ReLU, but not with a norm
        elif can_take_norm and _folds(first, module):
            group.append(name)
            can_take_norm = False
        elif type(module) is nn.ReLU:
            group.append(name)
            break
        elif type(module) is not nn.Identity:
            break
    if is_qat and type(first) is nn.Conv1d and len(group) == 2 and type(parent.get_submodule(group[1])) is nn.ReLU:
        return  # torch has no such pair for training
    fuse = fuse_modules_qat if is_qat else fuse_modules
    if len(group) == 3 and type(first) is nn.Linear:  # torch fuses these in two steps, and not for training
        fuse(parent, group[:2], inplace=True)
        group = group[:1] if is_qat else [group[0], group[2]]
    if len(group) > 1:
        fuse(parent, group, inplace=True)


def _folds(first: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` is a batch norm of what ``first`` gives."""
    if type(norm) is not _NORMS[type(first)]:
        return False
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    width = first.out_features if isinstance(first, nn.Linear) else first.out_channels
    return norm.num_features == width and norm.running_mean is not None and norm.affine


def _add_islands(module: nn.Module) -> None:
    """Puts what has no int8 form between stubs: modules of torch, and those that hold parameters but no modules."""
    for name, child in module.named_children():
        kind = type(child)
        if isinstance(child, (FloatIsland, QuantStub, DeQuantStub)) or kind.__module__.startswith("torch.ao."):
            continue
        is_of_torch = kind.__module__.startswith("torch.nn.") and kind.__module__ != "torch.nn.modules.container"
        holds = not child._modules and bool(child._parameters or child._buffers)
        if kind not in _IN_INT8 and (is_of_torch or holds):
            setattr(module, name, FloatIsland(child))
        elif kind not in _IN_INT8:
            _add_islands(child)
