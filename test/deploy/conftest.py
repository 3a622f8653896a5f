"""Files of every format, written once."""

from collections.abc import Callable

import pytest
from deploy_models import CASES, Written, write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of these files run in one process, or each would compile them."""
    for item in items:
        if "written" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("files of every format"))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """The file of a case, which nobody may change."""
    made: dict[str, Written] = {}

    def get(name: str) -> Written:
        if name not in made:
            made[name] = write(CASES[name], tmp_path_factory.mktemp("files") / name)
        return made[name]

    return get
