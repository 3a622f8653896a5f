"""State dicts of a wrapper in the keys of the model that it holds as a child."""

from collections.abc import Callable
from typing import Any

__all__ = ["add_child", "remove_child"]


def remove_child(state_dict: dict[str, Any], prefix: str, child: str) -> None:
    """Takes the name of the child out of the keys, in place and in the same order."""
    start = f"{prefix}{child}."
    _rename(state_dict, lambda key: prefix + key.removeprefix(start) if key.startswith(start) else key)


def add_child(state_dict: dict[str, Any], prefix: str, child: str, others: tuple[str, ...] = ()) -> None:
    """Puts it back, but for the keys of the ``others`` among the children."""
    kept = tuple(f"{prefix}{other}." for other in others)

    def rename(key: str) -> str:
        is_its = key.startswith(prefix) and not key.startswith(kept)
        return f"{prefix}{child}.{key.removeprefix(prefix)}" if is_its else key

    _rename(state_dict, rename)


def _rename(state_dict: dict[str, Any], rename: Callable[[str], str]) -> None:
    # All at once: a new key may be the old one of another tensor.
    renamed = {rename(key): value for key, value in state_dict.items()}
    state_dict.clear()
    state_dict.update(renamed)
