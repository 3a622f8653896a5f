"""Known failures on the oldest supported versions, with their reasons."""

import importlib.metadata
import re
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / "setup.py"

# Keys are the beginnings of test ids, relative to `test/`.
BEFORE_TORCH_2_15 = {  # 2.14 is the newest torch for Python 3.10
    "conformance/test_matrix.py::test_case[MLP-script-dropout in place[train]]": (
        "a script cannot write into a view of its input"
    ),
}
OLDEST_TORCH = {
    "layers/test_mixed_precision.py::test_half_layers_accept_float32_under_autocast[compiled-": (
        "compiled code cannot check whether autocast is enabled"
    ),
    "experimental/test_spatial_attention.py::test_an_exported_program_accepts_sizes_of_every_remainder[{'stride': 2": (
        "the exported program requires more pixels before its last blocks than sizes of any remainder have"
    ),
    "deploy/lowering/test_networks.py::test_torchvision[shufflenet_v2_x0_5": (
        "torch.export of this version accepts the max pool for sizes of one remainder only, which is refused by name"
    ),
    "quantized/pt2e/test_quantize.py::test_equal_to_torchao_workflow": "torchao leaves the model in float",
    "quantized/pt2e/test_report.py::test_torchao_workflow_fails_on_reused_relu": "torchao leaves the model in float",
}
OLDEST_ONNXRUNTIME = {  # 1.23 is the newest onnxruntime for Python 3.10
    "conformance/test_matrix.py::test_case[LayerNorm2d-onnx-default]": "the variance is wrong in the second digit",
}


def mark(tests: list[pytest.Item]) -> None:
    """Mark the failures that the installed versions are known for as strict xfails."""
    reasons = {}
    if _is_oldest("torch"):
        reasons |= OLDEST_TORCH
    if _is_oldest("onnxruntime"):
        reasons |= OLDEST_ONNXRUNTIME
    major, minor, *_ = importlib.metadata.version("torch").split(".")
    if (int(major), int(minor)) < (2, 15):
        reasons |= BEFORE_TORCH_2_15
    for test in tests:
        for prefix, reason in reasons.items():
            if test.nodeid.startswith(f"test/{prefix}"):
                test.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _is_oldest(package: str) -> bool:
    """Whether the installed version of a package is the oldest that ``setup.py`` allows."""
    (oldest,) = set(re.findall(rf'"{package}>=([0-9.]+)"', SETUP.read_text(encoding="utf-8")))
    try:
        return importlib.metadata.version(package).startswith(f"{oldest}.")
    except importlib.metadata.PackageNotFoundError:
        return False
