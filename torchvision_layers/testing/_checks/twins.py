"""Checks of quantizable twins before quantization."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._case import Case, loss_of, run_seeded
from .._check import check
from ._not_applicable import NO_TWIN, TRAIN_EVAL

__all__ = ["fuse", "twin_keys"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _arguments(cls: Callable[..., nn.Module]) -> list[tuple[object, ...]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]


@check("twin_keys", not_applicable=(NO_TWIN,))
def twin_keys(case: Case) -> None:
    """Layer and twin have the same signature, keys and outputs, and load each other's weights."""
    twin_cls: Any = case.spec.twin
    signatures = [_arguments(layer_cls) for layer_cls in (case.spec.cls, twin_cls)]
    assert signatures[0] == signatures[1], f"the arguments differ: {signatures}"
    layer, input = case.layer(), case.input()
    expected = layer(input)
    twin = case.place(twin_cls(**case.kwargs())).eval()
    assert list(twin.state_dict()) == list(layer.state_dict()), "the keys differ"
    twin.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(twin(input), expected), "the outputs differ"
    layer.load_state_dict(twin.state_dict(), strict=True)
    converted = twin_cls.from_float(layer)
    assert type(converted) is twin_cls
    assert torch.equal(converted(input), expected), "the outputs differ after from_float"
    assert not {id(p) for p in converted.parameters()} & {id(p) for p in layer.parameters()}, "weights are shared"
    assert type(layer) is case.spec.cls, "from_float changed the layer"
    try:
        twin_cls.from_float(nn.Hardshrink())
        message = "no error"
    except TypeError as error:
        message = str(error)
    assert "Hardshrink" in message, f"from_float of another layer raised {message}"


@check("fuse", variants=TRAIN_EVAL, not_applicable=(NO_TWIN,))
def fuse(case: Case) -> None:
    """Fusing keeps outputs, gradients and statistics, removes batch norms in eval, and a second call has no effect."""
    twin_cls: Any = case.spec.twin
    twin = twin_cls.from_float(case.layer())
    fused = copy.deepcopy(twin)
    fused.fuse_model()
    input = case.input()
    results = []
    for module in (twin, fused):
        x = input.clone().requires_grad_()
        y = run_seeded(module, x)
        loss_of(y).backward()
        statistics = [m.running_var for m in module.modules() if isinstance(m, _NORMS) and case.training]
        results.append([y, x.grad, *(s for s in statistics if s is not None)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if not case.training:
        assert not any(isinstance(module, _NORMS) for module in fused.modules()), "a batch norm is left"
    kinds = [type(module) for module in fused.modules()]
    fused.fuse_model()
    assert [type(module) for module in fused.modules()] == kinds, "a second call changed the modules"
