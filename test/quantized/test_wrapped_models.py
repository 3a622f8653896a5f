"""A model inside a wrapper is refused in the same words everywhere, with the code that unwraps it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import prepare_fx

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.rand(2, 3, 8, 8)


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def exported() -> nn.Module:
    return torch.export.export(model(), (X,)).module()


def observed() -> nn.Module:
    return prepare_fx(model(), torch.ao.quantization.get_default_qconfig_mapping("x86"), (X,))


WRAPPERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "data_parallel": (lambda: nn.DataParallel(model()), "module"),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(model()), "module"),
    "compiled": (lambda: torch.compile(model(), backend="eager"), "_orig_mod"),
    "scripted": (lambda: torch.jit.script(model()), ""),
    "traced": (lambda: torch.jit.trace(model(), X), ""),
    "exported": (exported, ""),
    "observed": (observed, ""),
}
ENTRIES: dict[str, Callable[[Any], object]] = {
    "quantize": lambda model: quantized.quantize(model, [X]),
    "quantize_pt2e": lambda model: quantized.quantize(model, [X], engine="pt2e"),
    "prepare_qat": quantized.prepare_qat,
    "prepare_qat_pt2e": lambda model: quantized.prepare_qat(model, X, engine="pt2e"),
    "quantizable": quantized.quantizable,
    "fuse_model": quantized.fuse_model,
    "fold": deploy.fold,
}


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.*deprecated",
    "ignore:torch.ao.quantization is deprecated",
    "ignore:Please use quant_min and quant_max:UserWarning",  # from torch's own default observers
)
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_model_is_refused(name: str) -> None:
    wrap, attribute = WRAPPERS[name]
    wrapper = wrap()
    texts = set()
    for entry in ENTRIES.values():
        with pytest.raises(ValueError, match="^model is a .*: pass the module that it wraps") as caught:
            entry(wrapper)
        texts.add(str(caught.value))
    assert len(texts) == 1
    if attribute:
        expression = texts.pop().rpartition(", ")[2]
        unwrapped = eval(expression, {"model": wrapper})
        assert expression == f"model.{attribute}"
        quantized.quantize(unwrapped, [X])


def test_wrapper_inside_a_model_is_refused() -> None:
    outer = nn.Sequential(nn.Identity(), nn.DataParallel(model())).eval()
    with pytest.raises(ValueError, match=r"1 is a DataParallel: .*, model.get_submodule\('1'\).module") as caught:
        quantized.quantize(outer, [X])
    unwrapped = eval(str(caught.value).rpartition(", ")[2], {"model": outer})
    quantized.quantize(nn.Sequential(nn.Identity(), unwrapped), [X])


def test_distributed_model_is_refused() -> None:
    """Without a process group: only the class matters."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model()
    with pytest.raises(ValueError, match=r"model is a DistributedDataParallel: .*, model.module"):
        quantized.quantize(wrapper, [X])


def test_feature_extractor_is_not_a_wrapper() -> None:
    extractor = torch.fx.symbolic_trace(model())
    assert isinstance(extractor, torch.fx.GraphModule)
    for entry in ENTRIES.values():
        entry(extractor)


class OwnCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("entry", ["quantize", "quantize_pt2e", "prepare_qat", "prepare_qat_pt2e", "lower"])
def test_model_that_overrides_call_is_refused(entry: str) -> None:
    run = {**ENTRIES, "lower": lambda model: deploy.lower(model, X)}[entry]
    with pytest.raises(TypeError, match="^model must compute in forward, its class OwnCall overrides __call__"):
        run(OwnCall().eval())


def test_child_that_overrides_call_is_quantized() -> None:
    model = nn.Sequential(OwnCall(), nn.ReLU()).eval()
    int8 = quantized.quantize(model, [X], engine="pt2e")
    assert decibels(model(X), int8(X)) > 30
