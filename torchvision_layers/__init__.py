"""Computer vision layers, and a path to int8 for any model."""

from importlib.metadata import PackageNotFoundError, version

from . import nn

__all__ = ["__version__", "nn"]

try:
    __version__ = version("torchvision_layers")
except PackageNotFoundError:  # a checkout that is on the path but not installed
    __version__ = "0+unknown"
