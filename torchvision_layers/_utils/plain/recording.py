"""The functions and child modules that a ``forward`` applies to its input, recorded on a run."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Recording", "Step", "light_copy", "record_steps"]

#: Methods that return the tensor itself if there is nothing to do.
_MAY_RETURN_ITSELF = {"contiguous", "cpu", "float", "to", "type", "type_as"}


@dataclass(frozen=True)
class Step:
    """One call of a chain, whose only tensor that depends on the input is its first argument."""

    #: A function, or the name of a child.
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """A run of a ``forward`` that is a chain of steps."""

    steps: list[Step]
    output: Tensor
    #: Whether it set an attribute or wrote into a buffer.
    writes: bool


def light_copy(module: nn.Module, device: str | None = None) -> nn.Module:
    """A copy with the same parameters and copies of the buffers, or with both on another device, without values."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device)

    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        is_kept = device is None
        memo[id(parameter)] = parameter if is_kept else nn.Parameter(like(parameter), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.clone() if device is None else like(buffer)
    return copy.deepcopy(module, memo)


@torch.no_grad()
def record_steps(module: nn.Module, input: Tensor) -> Recording | None:
    """The steps from the input of ``module`` to its output; ``None`` if they are not a chain.

    Passes on the errors of ``forward``.

    Args:
        module: a copy, which the run may change.
        input: the only input.
    """
    before, recorder = _state(module), _Recorder(input)
    handles = []
    for name, child in module.named_children():
        handles.append(child.register_forward_pre_hook(recorder.enter))
        handles.append(child.register_forward_hook(recorder.leave(name), with_kwargs=True))
    try:
        with recorder:
            output = module(input)
    finally:
        for handle in handles:
            handle.remove()
    if recorder.has_failed or output is not recorder.current or not recorder.steps:
        return None
    return Recording(recorder.steps, recorder.current, _state(module) != before)


def _state(module: nn.Module) -> list[object]:
    """Values that change if a ``forward`` sets an attribute or writes into a buffer."""
    attributes = [id(value) for value in vars(module).values() if type(value) is not dict]
    members = [id(value) for value in (*module._modules.values(), *module._parameters.values())]
    buffers = [(id(buffer), buffer._version) for buffer in module._buffers.values() if buffer is not None]
    containers = [len(value) for value in vars(module).values() if isinstance(value, (dict, list))]
    return [*vars(module), *attributes, *members, *buffers, *containers]


class _Recorder(TorchFunctionMode):
    def __init__(self, input: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.current = input
        self.has_failed = False
        self._depth = 0  # of the child that runs
        self._dependent = {id(input): input}  # holds the tensors, so that no other gets the same id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._depth == 0:
            self._add(func, args, kwargs, output)
        return output

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._depth += 1

    def leave(self, name: str) -> Any:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._depth -= 1
            if self._depth == 0:
                self._add(name, args, kwargs, output)
                self.has_failed |= len(args) != 1 or bool(kwargs)

        return leave

    def _add(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._dependent]
        if not inputs:
            return
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):  # a question, such as size()
            self.has_failed |= isinstance(target, str)
            return
        if output is self.current and getattr(target, "__name__", "") in _MAY_RETURN_ITSELF:
            return
        first = args[0] if args else kwargs.get("input")
        if len(inputs) != 1 or first is not self.current or not isinstance(output, Tensor):
            self.has_failed = True
        self.steps.append(Step(target, args, kwargs))
        for leaf in tree_leaves(output):
            self._dependent[id(leaf)] = leaf
        self.current = output
