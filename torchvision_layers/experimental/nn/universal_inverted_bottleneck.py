"""The module of ``UniversalInvertedBottleneck`` before its promotion, to which pickles refer."""

from typing import Any

from ._promoted import promoted


def __getattr__(name: str) -> Any:
    return promoted(name, __name__)
