"""Checks of the model that a caller passes. Every error shows the code that corrects it."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from itertools import chain

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

__all__ = ["call_predicate", "check_cpu", "check_forward", "check_module", "check_not_lazy", "check_unwrapped"]


def check_module(argument: str, value: object) -> nn.Module:
    """Returns ``value``, an ``nn.Module``; for anything else, the error shows how to get the module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{argument} must be a module, got {_describe(value)}")
    return value


def _describe(value: object) -> str:
    """A value that is passed for a model, and how to get the model."""
    name = type(value).__name__
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"{value!r}: pass an instance, {value.__name__}(...).eval()"
    if inspect.isfunction(value):
        return f"the function {value.__name__}: pass the model that it returns, {value.__name__}(...).eval()"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, [*value][:2]))
        return f"a {name} with the keys {keys}, ...: build the model, call load_state_dict on it, and pass the model"
    if name == "_IncompatibleKeys":
        return "what load_state_dict returns: call model.load_state_dict(...) in a line of its own, and pass model"
    if isinstance(value, (str, os.PathLike)):
        return (
            f"{str(value)!r}: build the model, call model.load_state_dict(torch.load({str(value)!r})), and pass model"
        )
    if name in ("Loaded", "ExportedProgram"):
        return f"a {name}, which is a file's program: pass the model that it was exported from"
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}: the model is the first argument"
    return f"{value!r:.100}"


def check_unwrapped(argument: str, value: object, exempt: Collection[nn.Module] = ()) -> nn.Module:
    """Returns ``value``, a module without a wrapper around it or inside it that runs a module out of reach.

    Modules in ``exempt`` may be wrappers.

    Errors: ``ValueError`` with the code that unwraps it.
    """
    model = check_module(argument, value)
    for path, module in model.named_modules(memo={*exempt}):
        attribute = _wrapped_attribute(module)
        if attribute is not None:
            wrapper = argument if not path else f"{argument}.get_submodule({path!r})"
            wrapped = (
                f", {wrapper}.{attribute}" if attribute else ", the model before it was lowered, scripted or exported"
            )
            raise ValueError(f"{path or argument} is a {type(module).__name__}: pass the module that it wraps{wrapped}")
    return model


def _wrapped_attribute(module: nn.Module) -> str | None:
    """The attribute in which a wrapper keeps its module, ``""`` if it keeps none; ``None`` for any other module."""
    names = {cls.__name__ for cls in type(module).__mro__}  # importing the compiler or FSDP takes seconds
    if names & {"AveragedModel", "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"}:
        return "module"
    if "OptimizedModule" in names:
        return "_orig_mod"
    is_lowered = isinstance(module, torch.fx.GraphModule) and any(map(_is_lowered, module.graph.nodes))
    return "" if is_lowered or "LoweredModel" in names or isinstance(module, torch.jit.ScriptModule) else None


def _is_lowered(node: torch.fx.Node) -> bool:
    """Whether a node calls an operator that ``torch.export`` or a quantization tool put there."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        or (node.op == "call_function" and getattr(node.target, "__name__", "").startswith("quantize_per_"))
        or (node.op == "call_module" and "activation_post_process" in str(node.target))
    )


def check_forward(model: nn.Module) -> None:
    """Raises ``TypeError`` if the class of ``model`` overrides ``__call__``: tracing reads ``forward`` alone."""
    if type(model).__call__ is not nn.Module.__call__ and not isinstance(model, torch.fx.GraphModule):
        raise TypeError(
            f"model must compute in forward, its class {type(model).__name__} overrides __call__: move that code to "
            "forward"
        )


def check_not_lazy(argument: str, model: nn.Module) -> None:
    """Raises if ``model`` contains a lazy module that has not seen its first batch."""
    for path, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):
            location = f" at {path}" if path else ""
            raise TypeError(
                f"{argument} must not contain lazy modules, got {type(module).__name__}{location}: "
                "initialize it with model(batch)"
            )


def check_cpu(model: nn.Module) -> None:
    """Raises ``ValueError`` for a parameter or buffer that is not on the CPU."""
    for path, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type != "cpu":
            remedy = "model.to_empty(device='cpu') and load a state_dict" if tensor.is_meta else "model.cpu()"
            raise ValueError(f"model must be on the CPU, but {path} is on {tensor.device}: call {remedy}")


def call_predicate(argument: str, predicate: Callable[[str, nn.Module], object], path: str, module: nn.Module) -> bool:
    """Whether ``predicate`` holds for a module; raises ``TypeError`` if it takes anything but a path and a module."""
    try:
        return bool(predicate(path, module))
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # from within the function
            raise
        raise TypeError(
            f"{argument} must be a function of a path and a module, such as lambda path, module: path == 'fc', got "
            f"{predicate!r}: {error}"
        ) from error
