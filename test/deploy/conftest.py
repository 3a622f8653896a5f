"""A file of every format, written once a session."""

from collections.abc import Callable

import pytest

from ._support import CASES, CaseFile, write


@pytest.fixture(scope="session")
def case_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CaseFile]:
    """Returns the file of a case, which tests must not change."""
    files: dict[str, CaseFile] = {}

    def get(name: str) -> CaseFile:
        if name not in files:
            files[name] = write(CASES[name], tmp_path_factory.mktemp("files") / name)
        return files[name]

    return get
