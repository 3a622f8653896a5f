"""Stable layers, one family a file; ``torchvision_layers.nn`` is their public door."""
