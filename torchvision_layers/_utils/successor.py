"""State, hooks and mode of a layer, passed on to the layer that takes its place."""

import inspect
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from .hooked_weights import hooked_paths

__all__ = ["Successor", "attribute", "check_succession", "shadow"]

# Names that layers of torch, torchvision and timm use for the same number.
_SYNONYMS = (
    {"num_features", "num_channels", "channels", "dim"},
    {"affine", "elementwise_affine"},
    {"p", "drop_prob"},
)

_CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

# They change no value, describe what the state shows, or belong to the device.
_NO_LOSS = {"inplace", "track_running_stats", "device", "dtype"}


def shadow(module: nn.Module) -> nn.Module:
    """Another object with the class and state of ``module``, which keeps both if ``module`` becomes something else."""
    inner = module.__class__.__new__(module.__class__)
    inner.__dict__ = module.__dict__
    return inner


def synonyms(name: str) -> set[str]:
    """All names of an argument."""
    return next((group for group in _SYNONYMS if name in group), {name})


def attribute(layer: nn.Module, name: str) -> list[Any]:
    """The value of a constructor's argument ``name`` that ``layer`` was built with, if it has it under this name.

    For a parameter, such as the bias, it is whether the layer has it.
    """
    for other in (name, *synonyms(name)):
        if other in layer._parameters or other in layer._buffers:
            return [getattr(layer, other) is not None]
        value = getattr(layer, other, layer)
        if isinstance(value, (bool, int, float, str, tuple, list, type(None), torch.Size)):
            return [value]
    return []


@dataclass(frozen=True)
class Successor:
    """A layer, and the new one that takes its place."""

    path: str
    old: nn.Module
    #: Keeps the class and state of ``old``, also for a new layer that contains the old one.
    inner: nn.Module
    new: nn.Module

    @property
    def is_same(self) -> bool:
        """Whether the old layer stays."""
        return self.new is self.inner

    @property
    def contains_old(self) -> bool:
        return any(part is self.inner for part in self.new.modules())

    @property
    def reuses_parts(self) -> bool:
        """Whether the new layer is built of parts of the old one, which keep their state."""
        return not set(self.inner.modules()).isdisjoint(self.new.modules())

    def carry(self, arguments: Set[str], bound: Set[str]) -> list[str]:
        """Gives the new layer the state and mode of the old one; returns what is lost, in words.

        ``arguments`` are those of the constructor of the new layer, ``bound`` those of them that the caller chose.
        """
        old_parts = dict(self.old.named_modules(remove_duplicate=False))
        kept = set(self.inner.modules())
        for path, part in self.new.named_modules():
            if part not in kept:
                part.training = old_parts.get(path, self.old).training
        if self.contains_old:
            return []
        if self.reuses_parts:
            return self._lost_hooks()
        return [
            *self._carry_state(),
            *self._lost_parts(),
            *self._lost_options(arguments),
            *self._unknown_options(arguments - bound),
            *self._lost_hooks(),
        ]

    def _carry_state(self) -> list[str]:
        old, new = self.old.state_dict(), self.new.state_dict()
        misfits = {key for key in old.keys() & new.keys() if _shape(old[key]) != _shape(new[key])}
        fitting = {key: value for key, value in old.items() if key not in misfits}
        try:
            result = self.new.load_state_dict(fitting, strict=False)  # which may map other keys to its own
        except RuntimeError:  # nn.InstanceNorm2d accepts no statistics
            result = self.new.load_state_dict({k: v for k, v in fitting.items() if k in new}, strict=False)
            result.unexpected_keys.extend(key for key in fitting if key not in new)
        tensors = {**dict(self.old.named_buffers()), **dict(self.old.named_parameters(remove_duplicate=False))}
        for path, part in self.new.named_modules():
            for own in (part._parameters, part._buffers):
                for name, value in list(own.items()):
                    other = tensors.get(f"{path}.{name}" if path else name)
                    is_parameter = isinstance(value, nn.Parameter)
                    if value is None or other is None or isinstance(other, nn.Parameter) != is_parameter:
                        continue
                    if other.shape == value.shape:  # the same object, so that optimizers and tied weights know it
                        setattr(part, name, other)
        losses = []
        dropped = [key for key in old if key in result.unexpected_keys]
        if dropped:
            losses.append(f"{', '.join(dropped)} dropped")
        losses += [f"{key} of shape {_shape(old[key])} dropped, {_shape(new[key])} needed" for key in sorted(misfits)]
        fresh = [key for key in new if key in result.missing_keys]
        if fresh:
            losses.append(f"{', '.join(fresh)} not trained, but at the initial value")
        return losses

    def _lost_parts(self) -> list[str]:
        """Modules without a state inside the old layer, such as an activation, that the new one does not run."""
        new = {path: type(part).__name__ for path, part in self.new.named_modules()}
        losses = []
        for path, part in self.old.named_modules():
            name = type(part).__name__
            if path and new.get(path) != name and not part.state_dict() and not isinstance(part, nn.Identity):
                losses.append(f"{path} ({name}) " + (f"replaced by {new[path]}" if path in new else "dropped"))
        return losses

    def _lost_options(self, arguments: Set[str]) -> list[str]:
        """Arguments of the old layer that differ from their default, and that the new layer does not have."""
        if "layer" in arguments:  # it has read what it wants
            return []
        options = []
        for name, parameter in inspect.signature(type(self.old)).parameters.items():
            if parameter.default is parameter.empty or name in _NO_LOSS or name in self.old._parameters:
                continue
            values = [] if arguments & synonyms(name) else attribute(self.old, name)
            if values and not _is_default(values[0], parameter.default) and attribute(self.new, name) != values:
                options.append(f"{name}={values[0]!r}")
        return [f"{', '.join(options)} dropped"] if options else []

    def _unknown_options(self, arguments: Set[str]) -> list[str]:
        """Arguments of both layers that the old one does not keep under their names, so the new one has its default."""
        if "layer" in arguments:
            return []
        options = [
            name
            for name, parameter in inspect.signature(type(self.old)).parameters.items()
            if name in arguments
            and isinstance(parameter.default, (bool, int, float, str, tuple))
            and attribute(self.old, name) in ([], [None])  # None is a child that it does not need
        ]
        if not options:
            return []
        return [
            f"{', '.join(options)} unknown, because {type(self.old).__name__} has no such attribute: at the default"
        ]

    def _lost_hooks(self) -> list[str]:
        has_hooks = any(self.old.__dict__.get(name) for name in _STATE_HOOKS)
        return ["hooks on the state_dict dropped"] if has_hooks else []

    def take_place(self) -> None:
        """Turns the old object into the new layer, so that every reference to it sees the change."""
        if self.is_same:
            return
        state = self.new.__dict__
        for name in _CALL_HOOKS:
            hooks = self.inner.__dict__[name]
            if self.contains_old:  # the hooks are those of the place, not of the layer in it
                self.inner.__dict__[name] = type(hooks)()
            hooks.update(state[name])  # the same dictionary, so that handles can still remove them
            state[name] = hooks
        state["_is_full_backward_hook"] = self.inner.__dict__["_is_full_backward_hook"]
        self.old.__class__ = self.new.__class__
        self.old.__dict__ = state


def check_succession(successor: Successor) -> None:
    """Raises if the new layer cannot take the place."""
    old, new = successor.old, successor.new
    if any(isinstance(part, LazyModuleMixin) for part in new.modules()):
        raise ValueError("becomes a lazy layer, although its sizes are known")
    if not successor.contains_old:
        if "forward" in vars(old):
            raise ValueError("has a forward that was set on the instance, which would be lost")
        if any(parametrize.is_parametrized(part) for part in old.modules()):
            raise ValueError(
                "has parametrized weights: call torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
        if hooked_paths(old):
            raise ValueError(
                "has weights that a hook computes: call remove of torch.nn.utils.prune, remove_weight_norm or "
                "remove_spectral_norm on it first"
            )
    before, after = _inputs(old), _inputs(new)
    if before is not None and after is not None and (after[0] > before[0] or after[1] < before[1]):
        name = type(new).__name__
        raise ValueError(f"has the forward{_signature(old)}, {name} another one: forward{_signature(new)}")


def _inputs(module: nn.Module) -> tuple[int, float] | None:
    """How many inputs ``forward`` needs and takes; ``None`` if it cannot be read."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return len(required), float("inf") if takes_any else len(positional)


def _signature(module: nn.Module) -> str:
    return f"({', '.join(inspect.signature(module.forward).parameters)})"


def _is_default(value: object, default: object) -> bool:
    return value == default or (isinstance(value, tuple) and all(v == default for v in value))


def _shape(value: object) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None
