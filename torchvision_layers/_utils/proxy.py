"""Proxies of tensors in traces."""

import operator
from collections.abc import Callable
from typing import Any

import torch.fx

__all__ = ["RecordingProxy"]


class RecordingProxy(torch.fx.Proxy):
    """A proxy that records assignments such as ``+=``; those of torch.fx record ``+``, or cannot be assigned to.

    It refuses ``data``, through which writes would reach the tensor unseen.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise torch.fx.proxy.TraceError("a tensor is read as data")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            raise torch.fx.proxy.TraceError("the data of a tensor is set")
        super().__setattr__(name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place_method(name: str) -> Callable[[RecordingProxy, Any], torch.fx.Proxy]:
    target = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _name in ("iadd", "iand", "ifloordiv", "imatmul", "imod", "imul", "ior", "ipow", "isub", "itruediv", "ixor"):
    setattr(RecordingProxy, f"__{_name}__", _in_place_method(_name))
