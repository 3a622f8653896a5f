"""Folds, equalizes and lowers trained models for inference, and writes them to files that load without this package."""

from .equalize import equalize
from .export import Exported, export
from .fold import fold
from .load import Loaded, load
from .lower import LoweredModel, lower

__all__ = ["Exported", "Loaded", "LoweredModel", "equalize", "export", "fold", "load", "lower"]
