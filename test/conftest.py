"""Each test starts from one seed and keeps torch's engine; `--write-matrix` writes the conformance record."""

import gc
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from . import known_failures, speedups
from .conformance import matrix_record
from .conformance._support import write

# The tensors of the tests are small: a second thread costs three times what it saves.
torch.set_num_threads(1)

#: Prefixes of the ids of tests that run in the same process, because they share what takes long to make: calibrated
#: models of a layer, exported files, trained checkpoints, built docs.
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
    """Schedule tests with a common scope on one process.

    xdist_group marks would have no effect: pytest 9.2 does not read the ids that pytest-xdist 3.8 writes for them.
    """
    if config.getoption("dist") != "load":  # `-n` sets "load"; any other value is the user's choice
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Together(config, log)


def _scope(nodeid: str) -> str:
    return next((match[0] for pattern in TOGETHER if (match := re.match(pattern, nodeid))), nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long scopes first, so that no process waits for one at the end."""
    known_failures.mark(items)
    items.sort(key=lambda item: _scope(item.nodeid) == item.nodeid)


def pytest_collection_finish() -> None:
    """Collect garbage rarely: exports and compilers allocate many objects that are not garbage."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
    if session.config.getoption("--write-matrix"):
        record = matrix_record.updated(matrix_record.load(), session.config.stash[matrix_record.OUTCOMES])
        write(matrix_record.JSON, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write(matrix_record.TABLE, matrix_record.render(record))


@pytest.fixture(autouse=True, scope="session")
def _speedups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        speedups.cache_onnx_registry(patch)
        speedups.speed_up_range_search(patch)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _engine_does_not_change() -> Iterator[None]:
    before = torch.backends.quantized.engine
    yield
    assert torch.backends.quantized.engine == before
