"""Choices of hypothesis. Each shrinks to its first option, or to False."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

__all__ = ["Choices"]

T = TypeVar("T")


class Choices:
    """Draws from a strategy of hypothesis, within a function that ``strategies.composite`` decorates."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def pick(self, *options: T) -> T:
        """One of ``options``."""
        return self.pick_from(options)

    def pick_from(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        # Hypothesis labels a draw by the hash of its options: that of an object would differ in each run.
        return options[self._draw(st.sampled_from(range(len(options))))]

    def happens(self, share: float) -> bool:
        """True in about ``share`` of all cases."""
        return self._draw(st.sampled_from(range(20))) >= 20 * (1 - share)

    def count(self, lowest: int, highest: int) -> int:
        """An integer between both, which may occur."""
        return self._draw(st.sampled_from(range(lowest, highest + 1)))
