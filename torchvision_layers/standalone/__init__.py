"""A model or a layer as one file that needs only torch."""

from .write import source, write

__all__ = ["source", "write"]
