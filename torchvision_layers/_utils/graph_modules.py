"""Modules that torch.fx generated, such as torchvision's feature extractors, as modules with an ordinary class."""

import functools
from typing import Any

import torch.fx
from torch import nn

__all__ = ["make_ordinary_"]


def make_ordinary_(model: nn.Module) -> None:
    """Gives each ``torch.fx.GraphModule`` in ``model`` an ordinary class with the same ``forward``, in place.

    Copies of a ``GraphModule`` get their ``forward`` from its graph again, even if another took its place. A module
    that changes its graph in training mode, as torchvision's do, keeps both.
    """
    for module in model.modules():
        if isinstance(module, torch.fx.GraphModule):
            _make_ordinary(module)


def _make_ordinary(module: torch.fx.GraphModule) -> None:
    modes = {part: part.training for part in module.modules()}
    forwards, codes = {}, {}
    for mode in (True, False):
        module.train(mode)
        forwards[mode], codes[mode] = type(module).forward, module.code
    for part, mode in modes.items():
        part.training = mode
    forward: Any = forwards[False]
    if codes[True] != codes[False]:

        @functools.wraps(forwards[False])
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return forwards[self.training](self, *args, **kwargs)

    cls = type(module)
    members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "forward": forward}
    module.__class__ = type(cls.__name__, (nn.Module,), members)
