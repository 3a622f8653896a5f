"""All checks by name, with how often each runs."""

from collections.abc import Callable
from functools import partial

from .checks_export import check_export, check_int8_export
from .checks_fold import check_fold
from .checks_int8 import check_int8, check_state
from .checks_qat import check_qat
from .checks_standalone import check_standalone
from .subject import Subject

__all__ = ["CHECKS", "Periods", "due"]

CHECKS: dict[str, Callable[[Subject], None]] = {
    "fold": check_fold,
    "eager x86": partial(check_int8, engine="eager", backend="x86"),
    "eager onednn": partial(check_int8, engine="eager", backend="onednn"),
    "eager qnnpack": partial(check_int8, engine="eager", backend="qnnpack"),
    "pt2e x86": partial(check_int8, engine="pt2e", backend="x86"),
    "pt2e onnxruntime": partial(check_int8, engine="pt2e", backend="onnxruntime"),
    "pt2e tensorrt": partial(check_int8, engine="pt2e", backend="tensorrt"),
    "state eager": partial(check_state, engine="eager", backend="x86"),
    "state pt2e": partial(check_state, engine="pt2e", backend="x86"),
    "qat eager x86": partial(check_qat, engine="eager", backend="x86"),
    "qat eager onednn": partial(check_qat, engine="eager", backend="onednn"),
    "qat pt2e": partial(check_qat, engine="pt2e", backend="x86"),
    "standalone": check_standalone,
    "torchscript": partial(check_export, format="torchscript"),
    "pt2": partial(check_export, format="pt2"),
    "lowered": partial(check_export, format=None),
    "onnx": partial(check_export, format="onnx"),
    "aoti": partial(check_export, format="aoti"),
    "torchscript int8": partial(check_int8_export, format="torchscript", engine="eager", backend="onednn"),
    "pt2 int8": partial(check_int8_export, format="pt2", engine="pt2e", backend="x86"),
    "lowered int8": partial(check_int8_export, format=None, engine="pt2e", backend="x86"),
    "onnx-qdq": partial(check_int8_export, format="onnx-qdq", engine="pt2e", backend="onnxruntime"),
}

#: Each check runs on every model whose number divides by its period.
Periods = dict[str, int]


def due(periods: Periods, number: int) -> list[str]:
    """The checks of a model. Checks with equal periods run on different models."""
    return [name for i, (name, period) in enumerate(periods.items()) if (number + i) % period == 0]
