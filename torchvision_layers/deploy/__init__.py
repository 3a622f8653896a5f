"""Folds trained models for inference, and writes them to files that load without this package."""

from .export import Exported, export
from .fold import fold
from .load import Loaded, load

__all__ = ["Exported", "Loaded", "export", "fold", "load"]
