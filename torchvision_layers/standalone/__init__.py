"""A model or a layer as one file that needs torch only."""

from .write import source, write

__all__ = ["source", "write"]
