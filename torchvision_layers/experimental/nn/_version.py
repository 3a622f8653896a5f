"""The argument that chooses between the two versions of Swin Transformers."""

from ..._utils.checks import check_int

__all__ = ["check_version"]


def check_version(version: object) -> int:
    """Returns ``version``, which is 1 or 2."""
    number = check_int("version", version)
    if number > 2:
        raise ValueError(f"version must be 1 or 2, got {version}")
    return number
