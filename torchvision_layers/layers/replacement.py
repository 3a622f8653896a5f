"""Replacement of layers in a model that is already built."""

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .._utils.checks import check_bool
from .._utils.construct import LayerArgument, check_layer_argument
from .._utils.model_checks import call_predicate, check_not_lazy, check_unwrapped
from .._utils.modules import copy_module
from .._utils.successor import Successor, attribute, check_succession, shadow

__all__ = ["replace"]

_Module = TypeVar("_Module", bound=nn.Module)

#: A class, several, or a predicate of the path and the module.
_Old: TypeAlias = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool]

_LISTED = 8


def replace(model: _Module, old: _Old, new: LayerArgument, *, inplace: bool = False) -> _Module:
    """Replaces layers of a model that is built, and perhaps trained, without a change to its code.

    ``new`` is called with keyword arguments: each of its parameters that the old layer has as an attribute, such as
    ``eps`` or ``in_channels``. ``num_features``, ``num_channels``, ``channels`` and ``dim`` mean the same, and so do
    ``affine`` and ``elementwise_affine``, and ``p`` and ``drop_prob``. Arguments bound by a ``partial`` win. A
    parameter called ``layer`` receives the old layer itself, which the new one may contain.

    Parameters and buffers with the same name and shape are carried over. So are hooks on calls, the device, the dtype,
    the mode and ``requires_grad``; optimizers and tied weights keep their parameters. A module that is registered in
    several places is replaced once and stays shared. Batch norm statistics are not passed on to an instance norm,
    which would use them in eval mode in place of those of the image.

    Args:
        model: any model that is not compiled, scripted or wrapped.
        old: a class, a tuple of classes, or a function of the path and the module that returns whether to replace it.
            A class matches its subclasses. Layers inside a matched layer are replaced together with it.
        new: a constructor such as ``nn.SiLU`` or ``partial(nn.GroupNorm, 32)``, any function that returns a module, or
            a module, which is copied for each place.
        inplace: changes ``model`` itself. Default: ``False``, which leaves it as it is.

    Returns the model with the new layers, a deep copy unless ``inplace`` is set.

    Warns ``UserWarning`` if values of the old layers have no place in the new ones, new parameters have only their
    initial values, or an old layer does not keep an argument that the new one takes as well, with the names and the
    layers. Errors, before anything is changed: ``ValueError`` if nothing matches, and for all layers that cannot be
    replaced together: ``new`` cannot be called with their sizes, their weights are parametrized, their class overrides
    the ``forward`` of ``old``, or the new ``forward`` takes other inputs; ``TypeError`` for an argument of the wrong
    type.

    Examples::

        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> tnn.replace(tnn.replace(model, nn.BatchNorm2d, tnn.FrozenBatchNorm2d), nn.ReLU, nn.SiLU)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): FrozenBatchNorm2d(8, eps=1e-05)
          (2): SiLU()
        )
    """
    check_unwrapped("model", model)
    check_not_lazy("model", model)
    _check_old(old)
    check_layer_argument("new", new)
    if not check_bool("inplace", inplace):
        model = copy_module(model)
    matches = list(_matches(model, old))
    if not matches:
        classes = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise ValueError(f"old must match a layer of model, {_name(old)} matches none of its classes: {classes}")

    successors: list[Successor] = []
    problems: dict[str, list[str]] = defaultdict(list)
    for path, module in matches:
        try:
            _check_class(module, old)
            inner = shadow(module)
            successor = Successor(path, module, inner, _build(new, inner, _placement(model, path, module)))
            successors.append(successor)
            check_succession(successor)
        except (TypeError, ValueError, RuntimeError) as error:
            problems[f"{type(module).__name__} {error}"].append(path or "model")
    if problems:
        lines = "".join(f"\n  {_listed(paths)}: {problem}" for problem, paths in problems.items())
        raise ValueError(f"new={_name(new)} cannot replace all layers that old matches:{lines}")

    losses: dict[tuple[str, str], list[str]] = defaultdict(list)
    arguments = set() if isinstance(new, nn.Module) else set(_parameters(new))
    bound = set(new.keywords) if isinstance(new, partial) else set()
    for successor in successors:
        if not successor.is_same:
            for loss in successor.carry(arguments, bound):
                losses[f"{type(successor.old).__name__} -> {type(successor.new).__name__}", loss].append(
                    successor.path or "model"
                )
    for successor in successors:
        successor.take_place()
    if losses:
        lines = "".join(f"\n  {names}: {loss} at {_listed(paths)}" for (names, loss), paths in losses.items())
        warnings.warn(f"replaced {len(matches)} layers, but not everything could be carried over:{lines}", stacklevel=2)
    return model


def _check_old(old: object) -> None:
    if isinstance(old, (type, tuple)):
        classes = old if isinstance(old, tuple) else (old,)
        is_valid = bool(classes) and all(isinstance(cls, type) and issubclass(cls, nn.Module) for cls in classes)
    else:
        is_valid = callable(old) and not isinstance(old, nn.Module)
    if not is_valid:
        raise TypeError(f"old must be a class of modules, a tuple of such classes, or a predicate, got {old!r}")


def _matches(model: nn.Module, old: _Old) -> Iterator[tuple[str, nn.Module]]:
    """Matched modules by their first path, without those inside another matched module."""
    seen = set[nn.Module]()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        if _is_match(path, module, old):
            yield path, module
            return
        for name, child in module.named_children():
            yield from walk(f"{path}.{name}" if path else name, child)

    yield from walk("", model)


def _is_match(path: str, module: nn.Module, old: _Old) -> bool:
    if not isinstance(old, (type, tuple)):
        return call_predicate("old", old, path, module)
    # nn.MultiheadAttention reads the weight of this linear layer and never calls it.
    is_read = isinstance(module, NonDynamicallyQuantizableLinear) and old is not NonDynamicallyQuantizableLinear
    return isinstance(module, old) and not is_read


def _check_class(module: nn.Module, old: _Old) -> None:
    """Raises if ``module`` was matched by a class whose ``forward`` it overrides: it computes something else."""
    if not isinstance(old, (type, tuple)):
        return
    classes: list[Any] = [cls for cls in (old if isinstance(old, tuple) else (old,)) if isinstance(module, cls)]
    if all(type(module).forward is not cls.forward for cls in classes):
        name = type(module).__name__
        raise ValueError(
            f"overrides the forward of {classes[0].__name__}, so its place may need something else: pass old={name} if "
            "new computes the same"
        )


def _build(
    new: LayerArgument, layer: nn.Module, placement: tuple[torch.device | None, torch.dtype | None]
) -> nn.Module:
    """Calls ``new`` with what ``layer`` has, on its device and in its dtype."""
    device, dtype = placement
    if isinstance(new, nn.Module):
        module = copy.deepcopy(new)
    else:
        kwargs = _arguments(new, layer)
        with nullcontext() if device is None else device:
            try:
                module = new(**kwargs)
            except Exception as error:
                values = ", ".join(f"{name}={value!r}" for name, value in kwargs.items() if name != "layer")
                raise ValueError(f"gives {values or 'no arguments'}: {error}") from error
        if not isinstance(module, nn.Module):
            raise TypeError(f"new must return a module, got {type(module).__name__}")
        if not isinstance(new, (type, partial)) and set(layer.modules()).isdisjoint(module.modules()):
            module = copy.deepcopy(module)  # a function may return the same module on each call
    own = set(layer.modules())
    for part in module.modules():
        if part not in own and device is not None:
            part._apply(lambda t: t.to(device, dtype if t.is_floating_point() else None), recurse=False)
    return module


def _arguments(new: Callable[..., nn.Module], layer: nn.Module) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    missing = []
    bound = new.keywords if isinstance(new, partial) else {}
    for name, parameter in _parameters(new).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in {"device", "dtype", *bound}:
            continue
        values = [layer] if name == "layer" else attribute(layer, name)
        if values == [None] and isinstance(parameter.default, (bool, int, float)):  # a child that it does not need
            values = []
        if values:
            kwargs[name] = values[0]
        elif parameter.default is parameter.empty:
            missing.append(name)
    cls = new.func if isinstance(new, partial) else new
    if "track_running_stats" in kwargs and not (isinstance(cls, type) and issubclass(cls, _BatchNorm)):
        del kwargs["track_running_stats"]
    if missing:
        raise ValueError(
            f"has no {', '.join(missing)}, which new requires: bind it with functools.partial, or pass a function of "
            "the layer, lambda layer: ..."
        )
    return kwargs


def _parameters(new: Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(new).parameters)
    except (TypeError, ValueError):  # functions written in C may have no signature
        return {}


def _placement(model: nn.Module, path: str, module: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and dtype of a layer; those of the nearest module around it if it has no floating-point tensors."""
    parts = path.split(".")
    around = [model.get_submodule(".".join(parts[:length])) for length in range(len(parts) - 1, -1, -1)]
    for owner in [module, *around]:
        for tensor in [*owner.parameters(), *owner.buffers()]:
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return None, None


def _listed(paths: list[str]) -> str:
    rest = len(paths) - _LISTED
    return ", ".join(paths[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _name(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_name, value))})"
    if isinstance(value, partial):
        return f"partial({_name(value.func)}, ...)"
    return str(getattr(value, "__name__", value))
