"""Source that quantizable files contain instead of ``quantized``: it needs only ``torch.ao.quantization``."""

import inspect
from collections.abc import Callable
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules, fuse_modules_qat

from .._utils.checks import check_same_shape

__all__ = ["Addition", "Multiplication", "QuantizableLayer", "QuantizableModel"]

# The batch norm that folds into each type of convolution or linear layer.
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}

# Modules of torch that have an int8 form or accept int8 tensors. All others run in float.
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


# The errors that a forward may raise during tracing.
_TRACING_ERRORS = (AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)


class Addition(nn.Module):
    """The sum of two tensors of one shape, followed by a ReLU if one is fused into it."""

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


class FloatFallback(nn.Module):
    """Runs a module without an int8 kernel in float."""

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
    """Base class of quantizable twins, mixed into a float layer: the sums and products of the layer become modules."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # The constructor below accepts anything, but layers read the signature of those that they create.
        init = next(vars(c)["__init__"] for c in cls.__mro__ if c is not QuantizableLayer and "__init__" in vars(c))
        signature = inspect.signature(init)
        parameters = list(signature.parameters.values())[1:]
        cls.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._add_observed_ops()

    def _add_observed_ops(self) -> None:
        """Creates the modules that observe arithmetic between tensors."""

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses the layer's children in place, as :meth:`QuantizableModel.fuse_model` does."""
        fuse_children(self, self.training if is_qat is None else is_qat)


class QuantizableModel(nn.Module):
    """A model whose input is quantized and whose output is dequantized."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.entry = QuantStub()
        self.model = model
        self.exit = DeQuantStub()
        self.train(model.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.exit(self.model(self.entry(input)))

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses convolutions with the modules after them, and wraps modules without an int8 form to run in float.

        Works in place; a second call changes nothing. Call ``torch.ao.quantization.prepare`` (or ``prepare_qat``) and
        ``convert`` next.

        Args:
            is_qat: ``True`` fuses for quantization-aware training and keeps the batch norms; ``False`` folds them and
                needs eval mode; ``None`` follows ``self.training``. Default: ``None``.
        """
        fuse_children(self.model, self.training if is_qat is None else is_qat)
        _add_fallbacks(self)


class _ShallowTracer(torch.fx.Tracer):
    """Traces a single ``forward``: child modules are leaves, temporary modules such as slices are traced through."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not any(m is known for known in self.root.modules()):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _calls(module: nn.Module) -> tuple[list[list[str]], list[str]]:
    """The chains of modules in which each feeds only the next, and the modules that ``forward`` calls as a whole."""
    try:
        graph = _ShallowTracer().trace(module)
    except _TRACING_ERRORS:  # assume that it calls each child as a whole
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
    """Fuses the chains of modules that ``module.forward`` calls, in place, then those below each of them."""
    chains, whole = _calls(module)
    for chain in chains:
        names = [step for name in chain for step in _steps(module, name)]
        for start in range(len(names) - 1):
            _fuse_first(module, names[start:], is_qat)
    for name in whole:
        child = module.get_submodule(name)
        if child._modules and not type(child).__module__.startswith("torch.ao."):
            fuse_children(child, is_qat)


def _steps(parent: nn.Module, name: str) -> list[str]:
    """The modules that a layer calls one after another, without anything else; otherwise the layer itself."""
    layer = parent.get_submodule(name)
    if not isinstance(layer, QuantizableLayer) or layer._forward_hooks or layer._forward_pre_hooks:
        return [name]
    try:
        first, *calls, output = _ShallowTracer().trace(layer).nodes
    except _TRACING_ERRORS:
        return [name]
    is_row = all(
        node.op == "call_module" and node.args == (before,) and not node.kwargs
        for before, node in zip([first, *calls], calls, strict=False)
    )
    return [f"{name}.{node.target}" for node in calls] if is_row and output.args == (calls[-1],) else [name]


def _fuse_first(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses a convolution or linear layer with the norm and the ReLU that follow it, or a sum with its ReLU."""
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
            can_take_norm = False  # identity in eval mode; in training it commutes with ReLU, but not with a norm
        elif can_take_norm and _folds(first, module):
            group.append(name)
            can_take_norm = False
        elif type(module) is nn.ReLU:
            group.append(name)
            break
        elif type(module) is not nn.Identity:
            break
    if is_qat and type(first) is nn.Conv1d and len(group) == 2 and type(parent.get_submodule(group[1])) is nn.ReLU:
        return  # torch has no module for this pair in training
    fuse = fuse_modules_qat if is_qat else fuse_modules
    if len(group) == 3 and type(first) is nn.Linear:  # torch fuses these in two steps, without the ReLU in training
        fuse(parent, group[:2], inplace=True)
        group = group[:1] if is_qat else [group[0], group[2]]
    if len(group) > 1:
        fuse(parent, group, inplace=True)


def _folds(first: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` is a batch norm that folds into ``first``."""
    if type(norm) is not _NORMS[type(first)]:
        return False
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    features = first.out_features if isinstance(first, nn.Linear) else first.out_channels
    return norm.num_features == features and norm.running_mean is not None and norm.affine


def _add_fallbacks(module: nn.Module) -> None:
    """Wraps modules without an int8 form: those of torch, and those with parameters but no children."""
    for name, child in module.named_children():
        kind = type(child)
        if isinstance(child, (FloatFallback, QuantStub, DeQuantStub)) or kind.__module__.startswith("torch.ao."):
            continue
        is_torch = kind.__module__.startswith("torch.nn.") and kind.__module__ != "torch.nn.modules.container"
        has_tensors_only = not child._modules and bool(child._parameters or child._buffers)
        if kind not in _IN_INT8 and (is_torch or has_tensors_only):
            setattr(module, name, FloatFallback(child))
        elif kind not in _IN_INT8:
            _add_fallbacks(child)
