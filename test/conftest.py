"""Every test starts from one seed and leaves torch's engine as it was; `--write-matrix` records the matrix."""

import copy
import functools
import gc
import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from . import known_failures
from .conformance import matrix_record
from .conformance._support import write

# The tensors of the tests are small: a second thread costs three times what it brings.
torch.set_num_threads(1)

#: Tests, by the beginning of their ids, that run in the same process: the cases of a layer share what was calibrated,
#: some tests of deployment the files of every format, those of the scripts what was trained, those of the docs a build.
TOGETHER = (
    r"test/docs/test_build\.py",
    r"test/conformance/test_matrix\.py::test_case\[\w+",
    r"test/deploy/test_(?=(export|export_errors|load|malicious_files|without_package)\.py)",
    r"test/upstream/test_every_layer\.py",
    r"test/standalone/test_write\.py",
    r"test/references/test_(interruptions|processes|deployment|quantization)\.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", action="store_true", help="write the conformance record and page of the docs")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[matrix_record.OUTCOMES] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes, one runs all that shares what takes long to make; marks of groups would not be seen.

    pytest-xdist 3.8 writes them where pytest 9.2 no longer reads the ids of tests.
    """
    if config.getoption("dist") != "load":  # as `-n` sets it; somebody wants another
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((match[0] for pattern in TOGETHER if (match := re.match(pattern, nodeid))), nodeid)

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known_failures.mark(items)


def pytest_collection_finish() -> None:
    """What is there by now stays, torch above all: the collector need not walk through it again and again."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
    if session.config.getoption("--write-matrix"):
        record = matrix_record.updated(matrix_record.load(), session.config.stash[matrix_record.OUTCOMES])
        write(matrix_record.JSON, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write(matrix_record.TABLE, matrix_record.render(record))


@pytest.fixture(autouse=True, scope="session")
def _operators_of_onnx_are_read_once() -> Iterator[None]:
    """At each export torch parses the source of all operators of onnxscript, which takes longer than a small model."""
    try:
        registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        read = functools.cache(registry.from_torchlib)
    except (AttributeError, ImportError):  # not of this torch: exports are slower, and no different
        yield
        return

    def from_torchlib(**options: int) -> object:
        made = copy.copy(read(**options))
        made.functions = {target: list(found) for target, found in made.functions.items()}  # an export may add some
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(from_torchlib))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _engine_is_left_alone() -> Iterator[None]:
    before = torch.backends.quantized.engine
    yield
    assert torch.backends.quantized.engine == before
