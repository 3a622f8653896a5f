"""What fails with old versions that `setup.py` allows, for reasons of theirs; with any others it must pass."""

import importlib.metadata
import re

import pytest

# By the beginning of the test's id, below `test`.
BEFORE_TORCH_2_15 = {  # the newest for Python 3.10 is 2.14
    "test_matrix.py::test_cell[MLP-script-dropout in place[train]]": "scripts refuse to write into views of inputs",
}
IN_TORCH = {  # the lowest
    "test_mixed_precision.py::test_autocast_lets_float32_into_a_half_layer[compiled-": (
        "compiled code cannot ask whether there is autocast"
    ),
    "experimental/test_spatial_attention.py::test_an_exported_program_serves_sizes_of_every_remainder[{'stride': 2": (
        "the exported program demands more pixels before its last blocks than sizes of any remainder have"
    ),
    "quantized/test_graph.py::test_equal_to_the_plain_flow_of_torchao": "torchao alone leaves the model in float",
    "quantized/test_graph_report.py::test_the_plain_flow_refuses_one_relu_at_many_places": (
        "torchao alone leaves the model in float"
    ),
}
IN_ONNXRUNTIME = {  # 1.23 is the last for Python 3.10
    "test_matrix.py::test_cell[LayerNorm2d-onnx-default]": "the variance is wrong in the second digit",
}


def mark(tests: list[pytest.Item]) -> None:
    """Expects these failures, where the versions are those."""
    failing = {**_where_lowest("torch", IN_TORCH), **_where_lowest("onnxruntime", IN_ONNXRUNTIME)}
    major, minor, *_ = importlib.metadata.version("torch").split(".")
    if (int(major), int(minor)) < (2, 15):
        failing |= BEFORE_TORCH_2_15
    for test in tests:
        for beginning, reason in failing.items():
            if test.nodeid.startswith(f"test/{beginning}"):
                test.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _where_lowest(package: str, failing: dict[str, str]) -> dict[str, str]:
    (lowest,) = {
        found[1]
        for required in importlib.metadata.requires("torchvision_layers") or []
        if (found := re.match(rf"{package}>=([0-9.]+)", required))
    }
    return failing if importlib.metadata.version(package).startswith(f"{lowest}.") else {}
