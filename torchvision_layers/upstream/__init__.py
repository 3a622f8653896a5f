"""Stable layers on their way to torchvision: :func:`propose` makes a layer a change to a checkout of it."""

from .change import Change, propose

__all__ = ["Change", "propose"]
