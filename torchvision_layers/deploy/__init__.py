"""Folds and lowers trained models for inference, and writes them to files that load without this package."""

from .export import Exported, export
from .fold import fold
from .load import Loaded, load
from .lower import LoweredModel, lower

__all__ = ["Exported", "Loaded", "LoweredModel", "export", "fold", "load", "lower"]
