"""The sizes of the results of modules, and the modules whose calls cannot share a range."""

from torch import Tensor, nn

from ..._utils.modules import has_hooks
from ..._utils.structure import flatten

__all__ = ["Measure", "find_distinct_ranges"]

#: Calls whose results differ by more in size get ranges of their own: a common one costs the smaller results two bits.
_SPLIT = 4.0


class Measure:
    """The largest magnitude of outputs. A container returns the tensor of its last module, which is measured once."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.version, self.size = 0, 0.0

    def __call__(self, output: object) -> float | None:
        """``None`` if there are no floating-point values."""
        tensors = [tensor for tensor in flatten(output)[0] if tensor.is_floating_point() and tensor.numel()]
        return max(map(self._size_of, tensors), default=None)

    def _size_of(self, tensor: Tensor) -> float:
        version = 0 if tensor.is_inference() else tensor._version
        if tensor is not self.last or version != self.version:
            self.last, self.version = tensor, version
            self.size = max(abs(float(limit)) for limit in tensor.aminmax())
        return self.size


def find_distinct_ranges(model: nn.Module, sizes: dict[str, list[float]]) -> dict[str, float]:
    """The modules whose calls return values of different sizes, or call such a module.

    The values are the ratios of the largest result to the smallest, by path.

    Args:
        model: in float.
        sizes: the largest value of each result of each module, by path.
    """
    ratios = {path: max(values) / max(min(values), 1e-30) for path, values in sizes.items() if len(values) > 1}
    distinct = {}
    for path, module in model.named_modules():
        if path in ratios and not any(map(has_hooks, module.modules())):
            ratio = max(ratio for inner, ratio in ratios.items() if f"{inner}.".startswith(f"{path}."))
            if ratio > _SPLIT:
                distinct[path] = ratio
    return distinct
