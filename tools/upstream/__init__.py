"""Adds a stable layer to a checkout of torchvision: ``make upstream LAYER=MBConv CHECKOUT=DIR``."""
