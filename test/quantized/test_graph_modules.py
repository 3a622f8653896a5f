"""Graphs of torch.fx as models: torchvision's feature extractors, and what ``symbolic_trace`` returns."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor

from torchvision_layers import deploy, quantized

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Its layers in torchvision's spelling, and a dropout whose mode is a constant in a traced graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.left(x) + self.right(x))
        return self.head(F.dropout(x, 0.5, self.training))


def network() -> Network:
    torch.manual_seed(0)
    model = Network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def extractor(model: nn.Module) -> nn.Module:
    return create_feature_extractor(model, {"stem": "stem", "add": "sum", "head": "head"})


class Around(nn.Module):
    """A feature extractor as a child."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.backbone(x)["head"])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "extractor": lambda: extractor(network()),
    "extractor in training mode": lambda: extractor(network().train()),
    "child": lambda: Around(extractor(network())).eval(),
    "symbolic trace": lambda: torch.fx.symbolic_trace(network()),
    "getter": lambda: IntermediateLayerGetter(nn.Sequential(*network().stem), {"0": "a", "2": "b"}),
}


def tensors(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output.values())


def decibels(output: Tensor | dict[str, Tensor], expected: Tensor | dict[str, Tensor]) -> float:
    powers = [
        (original.double().square().sum() / (tensor.double() - original).square().sum()).item()
        for tensor, original in zip(tensors(output), tensors(expected), strict=True)
    ]
    return float(10 * torch.tensor(min(powers)).log10())


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("name", MODELS)
def test_quantize(name: str, backend: str) -> None:
    model = MODELS[name]()
    modes = [module.training for module in model.modules()]
    int8 = quantized.quantize(model, [X], backend=backend)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(X)
        assert decibels(int8(X), expected) > 30
        assert decibels(copy.deepcopy(int8)(X[:1]), {k: v[:1] for k, v in enumerate(tensors(expected))}) > 30
    assert [module.training for module in model.modules()] == modes
    again = quantized.quantize(model, [2 * X], backend=backend)
    again.load_state_dict(int8.state_dict())
    assert all(map(torch.equal, tensors(again(X)), tensors(int8(X))))
    assert not any(isinstance(module, nn.Conv2d) for module in int8.modules())


@pytest.mark.parametrize("has_example", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_train(name: str, has_example: bool) -> None:
    model = MODELS[name]()
    prepared = quantized.prepare_qat(model, X if has_example else None, backend="onednn")
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(2):
        sum(tensor.square().mean() for tensor in tensors(prepared(X))).backward()  # type: ignore[union-attr]
        optimizer.step()
    int8 = quantized.convert(prepared)
    with torch.no_grad():
        assert decibels(int8(X), copy.deepcopy(prepared).eval()(X)) > 20


def test_dropout_follows_the_mode() -> None:
    prepared = quantized.prepare_qat(extractor(network()), X, backend="x86")
    assert not torch.equal(prepared(X)["head"], prepared(X)["head"])
    quantized.freeze(prepared.eval())
    assert torch.equal(prepared(X)["head"], prepared(X)["head"])


def test_pt2e() -> None:
    model = extractor(network())
    int8 = quantized.quantize(model, [X], engine="pt2e")
    with torch.no_grad():
        assert decibels(int8(X), model(X)) > 30


def test_fold_and_export(tmp_path: Path) -> None:
    model = extractor(network())
    folded = deploy.fold(model, X)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    int8 = quantized.quantize(folded, [X], backend="x86")
    with torch.no_grad():
        assert decibels(int8(X), model(X)) > 30
    deploy.export(folded, X, tmp_path / "float.pt2", format="pt2")
    deploy.export(int8, X, tmp_path / "int8.pt")


@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_graphs_of_quantization_tools_are_refused() -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    prepared = prepare_fx(network(), get_default_qconfig_mapping("x86"), (X,))
    for engine in ("eager", "pt2e"):
        with pytest.raises(ValueError, match="model is a GraphModule: pass the module that it wraps"):
            quantized.quantize(prepared, [X], engine=engine)
