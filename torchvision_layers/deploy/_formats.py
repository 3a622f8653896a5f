"""The formats: which file writes and reads each, and how near to the model it comes."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from . import _aoti, _onnx, _pt2, _torchscript

__all__ = ["FORMATS", "Format", "find"]


class Format(NamedTuple):
    """``check`` refuses models, ``write`` and ``read`` are the two ways; then what the suffix must be, if anything.

    The bounds are on the largest difference, relative to the largest output, of float and of int8 models. Where the
    file rounds int8 by itself, it may also be as far from the model as rounding alone can take the model.
    """

    check: Callable[[nn.Module], None]
    write: Callable[[nn.Module, Tensor, Path, str], None]
    read: Callable[[Path], tuple[Callable[[Tensor], Tensor], str]]
    float_bound: float
    int8_bound: float
    suffix: str = ""
    rounds: bool = False


# In float, the same convolution sums in another order. Int8: TorchScript runs the kernels of the model itself; an
# exported graph computes in float what int8 would, as the model does.
_FLOAT = 1e-4
# Kernels of int8 round a value between two steps to the other one now and then. On trained networks that made up to
# 2.4 % of the largest output, after the 50 layers of a ResNet with group norms.
_KERNELS = 0.05

FORMATS = {
    "torchscript": Format(_torchscript.check, _torchscript.write, _torchscript.read, _FLOAT, 0.0),
    "pt2": Format(_pt2.check, _pt2.write, _pt2.read, _FLOAT, 1e-5),
    "aoti": Format(_aoti.check, _aoti.write, _aoti.read, _FLOAT, _KERNELS, ".pt2", True),  # torch's loader asks for it
    "onnx": Format(_onnx.check, _onnx.write, _onnx.read, _FLOAT, 0.0),
    "onnx-qdq": Format(_onnx.check_int8, _onnx.write, _onnx.read, _FLOAT, _KERNELS, rounds=True),
}
_EXECUTORCH = "executorch"


def find(name: str) -> Format:
    """Errors: ``ValueError`` for an unknown name."""
    if name == _EXECUTORCH:  # its file loads the package, which most do not have
        module = importlib.import_module(f"{__package__}._executorch")
        return Format(module.check, module.write, module.read, _FLOAT, _KERNELS, rounds=True)
    if not isinstance(name, str) or name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join([*FORMATS, _EXECUTORCH])}, got {name!r}")
    return FORMATS[name]
