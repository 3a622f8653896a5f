"""Layers for computer vision, with quantizable twins that fuse themselves."""

from importlib.metadata import PackageNotFoundError, version

from . import nn

__all__ = ["__version__", "nn"]

try:
    __version__ = version("torchvision_layers")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"
