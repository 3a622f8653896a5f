"""Known failures name tests that exist."""

import re
from pathlib import Path

import pytest

from .. import known_failures

KEYS = [*known_failures.BEFORE_TORCH_2_15, *known_failures.OLDEST_TORCH, *known_failures.OLDEST_ONNXRUNTIME]


@pytest.mark.parametrize("key", KEYS)
def test_known_failure_names_a_test(key: str) -> None:
    file, test = key.split("::")
    source = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {test.partition('[')[0]}\(", source, re.M)
