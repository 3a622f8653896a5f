"""Inputs of other sizes derived from one example."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._utils.inputs import Inputs, accepts

__all__ = ["Sizes", "batch_size", "other_batch", "resize"]

# Tried in this order: odd sizes expose most; some models accept multiples of their strides or of the example only.
_GROWTH: tuple[Callable[[int, int], int], ...] = (
    lambda size, i: size + 3 + 2 * i,
    lambda size, i: size + 32 * (1 + i),
    lambda size, i: size * (2 + i),
)
_AXES = ("depth", "height", "width")

#: A dimension of an input: the index of the tensor and that of the dimension.
Dim = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model accepts."""

    #: For each tensor, its sizes, with the name of the axis in place of each variable one. Equal names, equal sizes.
    shapes: tuple[tuple[int | str, ...], ...]
    #: Inputs with other image sizes that the model accepts.
    resized: tuple[Inputs, ...]

    @classmethod
    def of(cls, model: nn.Module, example: Inputs, names: Sequence[str]) -> "Sizes":
        """Tries other image sizes of all inputs together, of those with one image size, and of each by itself."""
        tensors = example.tensors()
        batched = _batched(example)
        images = [_image_dims(tensor, tensors) for tensor in tensors]
        # Dimensions that may vary, each with its place among those of an image.
        places = {(i, dim): place for i, own in enumerate(images) for place, dim in enumerate(own)}
        places |= {(i, 0): -1 for i, tensor in enumerate(tensors) if tensor.dim() and not batched[i]}
        dims = list(places)
        groups = {tuple(dims): None}
        for key in (lambda dim: tuple(tensors[dim[0]].shape[d] for d in images[dim[0]]), lambda dim: dim[0]):
            for value in dict.fromkeys(map(key, dims)):
                groups.setdefault(tuple(dim for dim in dims if key(dim) == value))
        free: dict[Dim, bool] = {}  # whether each variable dimension is independent of other inputs
        resized = []
        for group in filter(None, groups):
            accepted, inputs = _try_sizes(model, example, {dim: places[dim] for dim in group})
            if inputs is not None:
                resized.append(inputs)
            is_alone = len({i for i, _ in group}) == 1
            free |= {dim: is_alone for dim in accepted}
        shapes = [list[int | str](tensor.shape) for tensor in tensors]
        for i, shape in enumerate(shapes):
            if batched[i]:
                shape[0] = "batch"
        taken = dict[str, tuple[int, int | None]]()
        for (i, dim), is_alone in sorted(free.items()):
            axis = _AXES[dim - tensors[i].dim()] if dim else "size"
            owner = (tensors[i].shape[dim], i if is_alone else None)
            name = axis if taken.setdefault(axis, owner) == owner else f"{names[i]}_{axis}"
            shapes[i][dim] = name
        return cls(tuple(map(tuple, shapes)), tuple(resized))


def batch_size(inputs: Inputs) -> int:
    """The first size of the first tensor with two dimensions."""
    return next(len(tensor) for tensor in inputs.tensors() if tensor.dim() >= 2)


def other_batch(inputs: Inputs, size: int) -> Inputs:
    """A batch of ``size`` that repeats the images of ``inputs`` in reverse order; of no fewer if they cannot be cut."""
    if not inputs.can_be_cut():
        size = max(size, batch_size(inputs))
    batched = iter(_batched(inputs))

    def repeat(tensor: Tensor) -> Tensor:
        if not next(batched):
            return tensor
        images = tensor.flip(0)
        return torch.cat([images] * (size // len(images) + 1))[:size].contiguous()

    return inputs.map(repeat)


def resize(inputs: Inputs, sizes: Callable[[int, torch.Size], Sequence[int]]) -> Inputs:
    """At most two images of ``inputs``, with the sizes that ``sizes`` returns for the index and shape of each tensor.

    All values are values of ``inputs``.
    """
    batched, can_be_cut = iter(enumerate(_batched(inputs))), inputs.can_be_cut()

    def sample(tensor: Tensor) -> Tensor:
        i, is_batched = next(batched)
        tensor = tensor[:2] if is_batched and can_be_cut else tensor
        for dim, size in enumerate(sizes(i, tensor.shape)):
            if size != tensor.shape[dim]:  # the nearest pixel
                tensor = tensor.index_select(dim, torch.arange(size) * tensor.shape[dim] // size)
        return tensor.contiguous()

    return inputs.map(sample)


def _batched(inputs: Inputs) -> list[bool]:
    """Whether the first dimension of each tensor is the batch."""
    batch = batch_size(inputs)
    return [tensor.dim() >= 1 and len(tensor) == batch for tensor in inputs.tensors()]


def _image_dims(tensor: Tensor, tensors: Iterable[Tensor]) -> range:
    """The dimensions of height and width: the last two, also of a mask without channels for an image among ``tensors``.

    A tensor with three dimensions is a sequence otherwise, and one with five a volume.
    """
    is_mask = tensor.dim() == 3 and any(other.dim() == 4 and other.shape[2:] == tensor.shape[1:] for other in tensors)
    return range(1 if is_mask else 2, tensor.dim() if 3 <= tensor.dim() <= 5 else 0)


def _try_sizes(model: nn.Module, example: Inputs, places: Mapping[Dim, int]) -> tuple[Sequence[Dim], Inputs | None]:
    """The first of all dimensions or of those at each place that can grow, and inputs in which they have."""
    groups = [[*places]]
    if len({*places.values()}) > 1:
        groups += [[dim for dim, own in places.items() if own == place] for place in dict.fromkeys(places.values())]
    for group in groups:
        for grow in _GROWTH:

            def sizes(i: int, shape: torch.Size) -> list[int]:
                return [
                    grow(size, max(0, places[i, dim])) if (i, dim) in group else size  # noqa: B023  # called in this loop
                    for dim, size in enumerate(shape)
                ]

            inputs = resize(example, sizes)
            if accepts(model, inputs):
                return group, inputs
    return (), None
