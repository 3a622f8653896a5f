"""Hooks that a user registered on the modules of a model."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..._utils.hooked_weights import computes_weight
from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.structure import flatten, map_tensors

__all__ = ["adapt_hooks_", "leave_hooked_in_float_", "watch_hooks"]

_REMEDY = "compute this in a forward, or quantize with engine='pt2e'"


class FloatHook:
    """A forward hook or forward pre-hook that gets int8 activations as floats.

    torch forgets which hooks take keyword arguments when it replaces a module; this one calls them as they expect.
    """

    def __init__(self, hook: Callable[..., Any], is_output_hook: bool, with_kwargs: bool) -> None:
        self.hook, self.is_output_hook, self.with_kwargs = hook, is_output_hook, with_kwargs

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        seen = map_tensors(_dequantized, (args, *output))
        before = _state(seen[-1])
        kwargs: tuple[dict[str, Any], ...] = ({},) if self.with_kwargs else ()
        result = self.hook(module, seen[0], *kwargs, *seen[1:])
        if self.with_kwargs and not self.is_output_hook and result is not None:
            result = result[0]
        if not any(tensor.is_quantized for tensor in flatten((args, output))[0]):
            return result
        if _state(seen[-1] if result is None else result) != before:
            raise TypeError(
                f"hooks of an int8 model must not change values, {self.hook} of {type(module).__name__} does: {_REMEDY}"
            )
        return None


def adapt_hooks_(model: nn.Module) -> None:
    """Makes the hooks of all modules in ``model`` hooks that int8 modules can run, in place."""
    for module in model.modules():
        for hooks, with_kwargs, is_output_hook in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, False),
            (module._forward_hooks, module._forward_hooks_with_kwargs, True),
        ):
            for key, hook in hooks.items():
                if not isinstance(hook, FloatHook) and not computes_weight(hook):
                    hooks[key] = FloatHook(hook, is_output_hook, key in with_kwargs)
            with_kwargs.clear()


def watch_hooks(paths: Mapping[nn.Module, str], changed: set[str]) -> list[RemovableHandle]:
    """Adds the paths of modules to ``changed`` whose hooks change tensors, until the handles are removed."""
    states: list[list[tuple[int, int]]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(_state((args, kwargs)))

    def enter_after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if states.pop() != _state((args, kwargs)):
            changed.add(paths[module])

    def leave(module: nn.Module, args: object, output: object) -> None:
        states.append(_state(output))

    def leave_after(module: nn.Module, args: object, output: object) -> None:
        if states.pop() != _state(output):
            changed.add(paths[module])

    handles = []
    for module in paths:
        if module._forward_pre_hooks:
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_pre_hook(enter_after, with_kwargs=True))
        if module._forward_hooks:
            handles.append(module.register_forward_hook(leave, prepend=True))
            handles.append(module.register_forward_hook(leave_after))
    return handles


def leave_hooked_in_float_(model: nn.Module, changed: Collection[str], allow_float: bool) -> dict[nn.Module, str]:
    """Makes modules whose hooks change tensors stay in float with all below them, in place.

    Args:
        model: without observers.
        changed: the paths of these modules.
        allow_float: whether convolutions and linear layers may stay in float.

    Returns the modules that may not, each with the reason.

    Errors: ``TypeError`` if ``model`` itself is one of these modules.
    """
    if "" in changed and not hasattr(model, "excluded_by"):
        raise TypeError(f"hooks of the model must not change its inputs or outputs, these do: {_REMEDY}")
    problems = {}
    for path in changed:
        module = model.get_submodule(path)
        if hasattr(module, "excluded_by"):
            continue
        has_layers = any(isinstance(part, (*CONV_AND_LINEAR, nn.Bilinear)) for part in module.modules())
        if has_layers and not allow_float:
            problems[module] = f"whose hooks change its inputs or outputs; {_REMEDY}, or pass allow_float=True"
            continue
        for part in module.modules():
            part.stays_in_float = True  # type: ignore[assignment]  # a plain attribute
    return problems


def _dequantized(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor


def _state(value: object) -> list[tuple[int, int]]:
    """Which tensors ``value`` holds, and how often each was written."""
    return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in flatten(value)[0]]
