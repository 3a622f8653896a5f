"""From a trained model to what runs: folded, and written to files that load without this package."""

from .export import Exported, export
from .fold import fold
from .load import Loaded, load

__all__ = ["Exported", "Loaded", "export", "fold", "load"]
