"""Files of every format, written once."""

from collections.abc import Callable

import pytest

from ._support import CASES, Written, write


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """The file of a case, which nobody may change."""
    made: dict[str, Written] = {}

    def get(name: str) -> Written:
        if name not in made:
            made[name] = write(CASES[name], tmp_path_factory.mktemp("files") / name)
        return made[name]

    return get
