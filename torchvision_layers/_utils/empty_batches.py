"""Runs on batches without images, which some kernels reject or give another shape."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from .inputs import Inputs
from .structure import flatten, rebuild

__all__ = ["has_no_images", "run_without_images", "runs_without_images"]

#: The most images that a ``forward`` may need.
_MOST_IMAGES = 64
_is_running = ContextVar("_is_running", default=False)


def has_no_images(inputs: Inputs) -> bool:
    """Whether a tensor has size 0 in its first dimension."""
    return any(map(_is_empty, inputs.tensors()))


def run_without_images(inputs: Inputs, run: Callable[[Inputs], Any]) -> Any:
    """The output for a batch without images, from those for one image of zeros and for two.

    A ``forward`` that takes only multiples of a number of images gets one and two of these. A dimension in which both
    outputs differ is the batch; an output without one, such as the anchors of a detector, is returned as it is.

    Errors: that of one image, if no number of images up to 64 can run.
    """
    token = _is_running.set(True)
    try:
        images, output = _smallest_run(inputs, run)
        one, template = flatten(output)
        two, _ = flatten(run(_zeros(inputs, 2 * images)))
    finally:
        _is_running.reset(token)
    return rebuild(template, [_without_batch(*pair) for pair in zip(one, two, strict=True)])


def runs_without_images() -> bool:
    """Whether the present run is one on zeros, whose values nothing reads."""
    return _is_running.get()


def _smallest_run(inputs: Inputs, run: Callable[[Inputs], Any]) -> tuple[int, Any]:
    """The smallest number of images that can run, and the output for it."""
    first_error: Exception | None = None
    for images in range(1, _MOST_IMAGES + 1):
        try:
            return images, run(_zeros(inputs, images))
        except Exception as error:  # a forward may raise anything
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _is_empty(tensor: Tensor) -> bool:
    return tensor.dim() > 0 and len(tensor) == 0


def _zeros(inputs: Inputs, images: int) -> Inputs:
    return inputs.map(lambda tensor: tensor.new_zeros(images, *tensor.shape[1:]) if _is_empty(tensor) else tensor)


def _without_batch(one: Tensor, two: Tensor) -> Tensor:
    for dim in range(one.dim()):
        if one.shape[dim] != two.shape[dim]:
            one = one.narrow(dim, 0, 0)
    return one
