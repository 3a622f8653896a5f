"""From a trained model to what runs: folded, and written to files that load without this package."""

from .fold import fold

__all__ = ["fold"]
