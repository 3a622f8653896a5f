"""Files and tests start from one seed, tests keep torch's engine; `--write-matrix` writes the conformance record."""

import gc
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from . import known_failures, speedups
from .conformance import matrix_record
from .interpreter import Interpreter

# The tensors of the tests are small: a second thread costs three times what it saves.
torch.set_num_threads(1)

#: Beginnings of the ids of tests that start first and share a process, because they share what takes long to make:
#: calibrated models of a layer, exported files, parsed sources, trained checkpoints, built docs. Other tests share one
#: by file.
TOGETHER = (
    r"test/docs/test_build\.py",
    r"test/conformance/test_matrix\.py::test_case\[\w+",
    r"test/deploy/test_(?=(export|export_errors|load|malicious_files|without_package)\.py)",
    r"test/(?=(standalone|upstream)/)",
    r"test/references/test_(interruptions|processes|deployment|quantization)\.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", action="store_true", help="write the conformance record and page of the docs")
    parser.addoption("--device", default="cpu", help="device of the tests in test/gpu, such as cuda (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[matrix_record.OUTCOMES] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a group or file in one process.

    xdist_group marks would have no effect: pytest 9.2 does not read the ids that pytest-xdist 3.8 writes for them.
    """
    if config.getoption("dist") != "load":  # `-n` sets "load"; any other value is the user's choice
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid) or nodeid.partition("::")[0]

    return Together(config, log)


def _group(nodeid: str) -> str | None:
    return next((match[0] for pattern in TOGETHER if (match := re.match(pattern, nodeid))), None)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed each file as well, so that tensors at its top do not depend on the files before it."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long groups first, so that no process waits for one at the end."""
    known_failures.mark(items)
    items.sort(key=lambda item: _group(item.nodeid) is None)


def pytest_collection_finish() -> None:
    """Collect garbage rarely: exports and compilers allocate many objects that are not garbage."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
    if session.config.getoption("--write-matrix"):
        device = torch.device(session.config.getoption("--device"))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        matrix_record.save(session.config.stash[matrix_record.OUTCOMES], name)


@pytest.fixture(autouse=True, scope="session")
def _speedups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        speedups.cache_onnx_registry(patch)
        yield


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture(autouse=True)
def _seed_and_engine() -> Iterator[None]:
    """Seed each test, and require that it keeps torch's quantized engine."""
    torch.manual_seed(0)
    engine = torch.backends.quantized.engine
    yield
    assert torch.backends.quantized.engine == engine
