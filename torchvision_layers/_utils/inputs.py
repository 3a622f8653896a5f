"""The inputs of one call of a model, positional and by keyword."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .checks import check_float32
from .structure import flatten, map_tensors

__all__ = ["Inputs", "accepts", "binds", "inputs_of", "positional_names", "takes_one_input"]


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model; tensors may be nested in tuples, lists, dicts and dataclasses."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, model: Callable[..., Any]) -> Any:
        """The output of ``model`` for these inputs."""
        return model(*self.args, **self.kwargs)

    def tensors(self) -> list[Tensor]:
        """All tensors, positional ones first."""
        return flatten((self.args, self.kwargs))[0]

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each tensor."""
        return [tuple(tensor.shape) for tensor in self.tensors()]

    def first_images(self, count: int) -> Self:
        """The same inputs with at most ``count`` images, or with all, see :meth:`can_be_cut`."""
        if not self.can_be_cut():
            return self
        return self.map(lambda tensor: tensor[:count] if tensor.dim() else tensor)

    def can_be_cut(self) -> bool:
        """Whether fewer images are inputs, too.

        They may not be if another tensor is no batch: boxes may hold the indices of their images, which kernels of
        torchvision do not check.
        """
        batches = {len(tensor) for tensor in self.tensors() if tensor.dim()}
        return len(batches) <= 1 and not self.has_list_of_images()

    def has_list_of_images(self) -> bool:
        """Whether a list or tuple seems to hold a tensor for each image of the batch, such as its boxes."""
        batch = next((len(tensor) for tensor in self.tensors() if tensor.dim()), 0)

        def holds(value: Any) -> bool:
            if isinstance(value, Mapping):
                return any(map(holds, value.values()))
            if not isinstance(value, (list, tuple)):
                return False
            if len(value) == batch > 1 and all(isinstance(item, Tensor) for item in value):
                return any(item.dim() < 3 or len(item) != batch for item in value)
            return any(map(holds, value))

        return any(map(holds, [*self.args, *self.kwargs.values()]))

    def bind(self, name: str, forward: inspect.Signature) -> inspect.BoundArguments:
        """The arguments of ``forward`` by name; raises ``TypeError``, which calls them ``name``, if it takes others."""
        try:
            return forward.bind(*self.args, **self.kwargs)
        except TypeError as error:
            hint = ""
            if len(self.args) > 1 and _is_target(self.args[-1]):
                hint = f"; the last item seems to be a target: leave it out, {name}[0]"
            elif self.kwargs and not self.args:
                hint = f"; its keys are {', '.join(map(repr, self.kwargs))}: rename them, or pass (input, target)"
            raise TypeError(f"{name} must hold the inputs of forward{forward}: {error}{hint}") from error

    def in_order(self, names: Sequence[str]) -> Self:
        """The same inputs, by position as far as ``names``, the :func:`positional_names` of a ``forward``, allow.

        The place of an input then does not depend on whether it has a name.
        """
        kwargs, args = dict(self.kwargs), [*self.args]
        for name in names[len(args) :]:
            if name not in kwargs:
                break
            args.append(kwargs.pop(name))
        return type(self)(tuple(args), kwargs)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same inputs with ``function`` applied to each tensor."""
        return type(self)(*map_tensors(function, (self.args, self.kwargs)))


def accepts(model: nn.Module, inputs: Inputs) -> bool:
    """Whether ``model``, which may change its buffers, runs on ``inputs``, which stay as they are."""
    try:
        with torch.no_grad():
            inputs.map(Tensor.clone).run(model)
    except Exception:  # a forward may raise anything for a size that it does not support
        return False
    return True


def inputs_of(name: str, batch: Any, model: nn.Module, *, tries_integers: bool = True) -> Inputs:
    """The inputs of ``model`` in a batch of a data loader.

    Args:
        name: what to call the batch in errors.
        batch: a tensor, the only input; a mapping of keyword inputs, which is the only input of a ``forward`` with a
            single positional argument of another name; or a sequence. For a ``forward`` that takes one input, a
            sequence is ``(input, target)``. For one that takes several, its items are the inputs, without integer
            tensors at the end that ``forward`` can do without: those are targets. The first item may itself be a
            sequence or mapping of inputs.
        model: the model to call.
        tries_integers: runs ``model`` on integers alone, because it may not take them. Default: ``True``.

    Errors: ``TypeError`` for inputs that ``forward`` does not accept, for floating-point tensors that are not float32,
    for sparse tensors, or if there are no floats and the model does not run on the others; ``ValueError`` for tensors
    that are empty, on the meta device or not finite.
    """
    signature = inspect.signature(model.forward)
    inputs = _split(batch, signature, model)
    bound = inputs.bind(name, signature)
    inputs = Inputs(bound.args, bound.kwargs)
    tensors = [tensor for tensor in inputs.tensors() if tensor.is_floating_point() or tensor.is_complex()]
    # Models may convert integers themselves.
    if not tensors and not (inputs.tensors() and (not tries_integers or accepts(model, inputs))):
        tensors = [*inputs.args, *inputs.kwargs.values()][:1]
    for tensor in tensors:
        check_float32(name, tensor)
    for tensor in inputs.tensors():
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}: convert it with .to_dense()")
        if tensor.numel() == 0:
            raise ValueError(f"{name} must not be empty, got shape {list(tensor.shape)}")
        if tensor.is_meta:
            raise ValueError(f"{name} must hold values, got a tensor on the meta device")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    return inputs


def _split(batch: Any, signature: inspect.Signature, model: nn.Module) -> Inputs:
    if isinstance(batch, Mapping):
        return _of_mapping(batch, signature, model)
    if not isinstance(batch, (list, tuple)) or not batch:
        return Inputs((batch,))
    if isinstance(batch[0], Mapping):
        return _of_mapping(batch[0], signature, model)
    positional = _positional(signature)
    if len(positional) == 1 and positional[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        return Inputs((batch[0],))
    items: Sequence[Any] = batch[0] if isinstance(batch[0], (list, tuple)) else batch
    required = max(1, sum(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in positional))
    count = len(items)
    while count > required and _is_target(items[count - 1]):
        count -= 1
    return Inputs(tuple(items[:count]))


def _of_mapping(mapping: Mapping[Any, Any], signature: inspect.Signature, model: nn.Module) -> Inputs:
    positional = _positional(signature)
    is_single = len(positional) == 1 and positional[0].kind is not inspect.Parameter.VAR_POSITIONAL
    is_keywords = all(isinstance(key, str) for key in mapping) and binds(signature, mapping)
    if is_single and not is_keywords and not _takes_tensor(model):
        return Inputs((mapping,))
    return Inputs(kwargs=dict(mapping))


def _takes_tensor(model: nn.Module) -> bool:
    """Whether the first argument of ``forward`` is known to be a tensor."""
    while type(model).forward is nn.Sequential.forward and len(model._modules):
        model = next(model.children())
    annotation = _positional(inspect.signature(model.forward))[0].annotation
    return annotation in (Tensor, "Tensor", "torch.Tensor")


def binds(signature: inspect.Signature, mapping: Mapping[str, Any]) -> bool:
    """Whether a function with this signature can be called with these keywords alone."""
    try:
        signature.bind(**mapping)
    except TypeError:
        return False
    return True


def takes_one_input(model: nn.Module) -> bool:
    """Whether ``forward`` has a single argument, which may be positional."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    return len(parameters) == 1 and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def positional_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments that have a position and may be passed by name."""
    parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return [parameter for parameter in signature.parameters.values() if parameter.kind in kinds]


def _is_target(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()
