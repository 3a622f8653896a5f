"""The parts of a model that cannot become int8, in one error."""

import inspect
import re
from collections.abc import Collection

from torch import nn

from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.tracing import trace_forward
from ..layers.observed import Observed
from ..report_row import Int8Support
from .support import int8_support, is_unit
from .wrappers import named_user_modules

__all__ = ["check_names", "describe", "describe_running", "first_sentence", "innermost", "raise_problems", "user_path"]

#: Attributes that the engine, or torch.ao, gives to modules of the user.
_RESERVED = {
    *("activation_post_process", "excluded_by", "float_class", "fused_into", "fused_levels", "is_rewritten"),
    *("is_unused", "largest_output", "new_children", "only_calls_children", "qconfig", "returns_float"),
    *("runs_in_float", "stays_in_float", "takes_int8"),
}
_ALLOW_FLOAT = "pass allow_float=True to leave it in float"


def raise_problems(
    model: nn.Module,
    problems: dict[str, str],
    untrainable: Collection[nn.Module],
    without_kernel: dict[nn.Module, str],
) -> None:
    """Raises ``TypeError`` with everything in ``model`` that cannot become int8.

    Args:
        model: with each ``forward`` rewritten or marked to run in float.
        problems: the paths of modules that compute with weights in their ``forward``, each with a reason.
        untrainable: layers that int8 can run, but not train.
        without_kernel: other layers, such as those of this package without a twin, each with the reason.
    """
    named = {m for layer in without_kernel for m in layer.modules()}.union(untrainable)
    modules = {path: model.get_submodule(path) for path in problems}
    problems = {path: reason for path, reason in problems.items() if not _is_excluded(modules[path])}
    lines = [
        f"{describe(model, modules[path])}, whose forward {reason}; call a child such as nn.Conv2d or nn.Linear "
        "instead, or pass allow_float=True"
        for path, reason in problems.items()
        if not hasattr(modules[path], "float_class")
        and int8_support(modules[path]) is not Int8Support.FLOAT_FALLBACK
        and modules[path] not in named
    ]
    lines += [
        f"{describe(model, layer)}, {reason}" for layer, reason in without_kernel.items() if not _is_excluded(layer)
    ]
    lines += [
        f"{describe(model, layer)}, which computes its weight in every forward or something else in training, so int8 "
        "can run it but not train it; train deploy.fold(model).requires_grad_() instead, or pass allow_float=True to "
        "leave it in float"
        for layer in untrainable
        if not _is_excluded(layer)
    ]
    lines += [f"{describe(model, m)}, {reason}" for m, reason in _unsupported(model) if m not in named]
    if len(lines) == 1:
        raise TypeError(lines[0])
    if lines:
        raise TypeError(f"model has {len(lines)} parts that cannot become int8:\n" + "\n".join(lines))


def check_names(model: nn.Module) -> None:
    """Raises ``ValueError`` if a child, parameter or buffer has the name of an attribute of the engine."""
    for path, module in model.named_modules():
        names = _RESERVED.intersection((*module._modules, *module._parameters, *module._buffers))
        is_of_engine = isinstance(module, Observed) or type(module).__module__.startswith("torch.ao.")
        if names and not is_of_engine:
            raise ValueError(
                f"children, parameters and buffers must have other names than attributes of engine='eager', "
                f"{path or 'model'} has one named {min(names)!r}: rename it, or quantize with engine='pt2e'"
            )


def describe(model: nn.Module, module: nn.Module) -> str:
    """Path, class and source line of a module, as the beginning of a sentence."""
    return f"{user_path(model, module) or 'model'} is a {type(module).__name__}{_source_line(module)}"


def user_path(model: nn.Module, module: nn.Module) -> str:
    """The path of a module before others were wrapped; empty for a module that the engine created."""
    return next((path for path, other in named_user_modules(model) if other is module), "")


def innermost(model: nn.Module, stack: list[nn.Module]) -> nn.Module:
    """The last module of ``stack`` that the engine did not create."""
    created = "torchvision_layers.quantized."
    return next((m for m in reversed(stack) if not type(m).__module__.startswith(created)), model)


def describe_running(model: nn.Module, stack: list[nn.Module]) -> str:
    """Describes the innermost module of ``stack`` that the engine did not create."""
    return describe(model, innermost(model, stack))


def _source_line(module: nn.Module) -> str:
    """The file and line of a ``forward``; nothing if it has no source."""
    forward = inspect.unwrap(type(module).forward)
    for cls in type(module).__mro__:  # a rewritten class is derived from the class that the user wrote
        if "is_rewritten" not in vars(cls) and "forward" in vars(cls):
            forward = inspect.unwrap(vars(cls)["forward"])
            break
    code = getattr(forward, "__code__", None)
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"


def _is_excluded(module: nn.Module) -> bool:
    return hasattr(module, "excluded_by")


def _unsupported(module: nn.Module) -> list[tuple[nn.Module, str]]:
    support = int8_support(module)
    if is_unit(module) or type(module) is nn.MultiheadAttention or _is_excluded(module):
        return []
    if support is Int8Support.UNKNOWN and isinstance(module, (*CONV_AND_LINEAR, nn.Bilinear, nn.MultiheadAttention)):
        return [(module, f"which int8 is not known to run; {_ALLOW_FLOAT}")]
    if hasattr(module, "float_class") and trace_forward(module).concatenates:  # twins are not rewritten
        reason = "which concatenates tensors in its forward, which int8 would do with the scale of the first"
        return [(module, f"{reason}; use quantized.Concatenation")]
    return [problem for child in module.children() for problem in _unsupported(child)]


def first_sentence(error: Exception) -> str:
    """The first sentence of an error; torch's own may go on with a list of its backends."""
    text = str(error).strip().partition("\n")[0]
    operator = re.match(r"Could not run '(\S+)' with arguments from", text)
    if operator or text.startswith("empty_strided not supported"):
        return f"torch has no int8 kernel for {operator[1] if operator else 'one of its operations'}"
    return text
