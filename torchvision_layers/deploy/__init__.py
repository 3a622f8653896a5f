"""From a model to files that run without this package."""

from .export import Exported, export
from .load import Loaded, load

__all__ = ["Exported", "Loaded", "export", "load"]
