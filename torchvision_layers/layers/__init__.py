"""Stable layers, one family per file. Import them from ``torchvision_layers.nn``."""
