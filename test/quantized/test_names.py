"""Children and tensors that are called like keywords of Python, or like attributes of exported graphs."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.graph, self.meta = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleDict({"from": nn.BatchNorm2d(4)})
        self.heads = nn.ModuleDict({"class": nn.Conv2d(4, 5, 1), "global": nn.Linear(4, 2), "class_": nn.Identity()})
        self.register_parameter("lambda", nn.Parameter(torch.rand(4, 1, 1) + 0.5))
        self.register_buffer("code", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert "class" in self.heads
        assert list(self.heads) == ["class", "global", "class_"] == list(self.heads.keys())
        x = F.relu(self.meta["from"](self._modules["graph"](x))) * getattr(self, "lambda") + self.code
        outputs = {"class": x, "global": x.mean((2, 3)), "class_": x}
        return {name: head(outputs[name]) for name, head in self.heads.items()}


def members(model: nn.Module) -> tuple[list[str], list[str], list[str], list[object]]:
    names = list(model.state_dict()), [p for p, _ in model.named_modules()], [p for p, _ in model.named_buffers()]
    return *names, [sorted(vars(module)) for module in model.modules()]


def check_close(outputs: dict[str, Tensor], expected: dict[str, Tensor], decibels: float) -> None:
    assert list(outputs) == list(expected)
    for name, tensor in expected.items():
        assert (outputs[name] - tensor).square().sum() <= tensor.square().sum() * 10 ** (-decibels / 10), name


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_models_are_quantized(engine: str) -> None:
    model = Named().eval()
    before, expected = members(model), model(X)
    int8 = quantized.quantize(model, [X], engine=engine)
    assert members(model) == before
    check_close(int8(X), expected, 30)
    check_close(copy.deepcopy(int8)(X), int8(X), 300)
    rows = {row.path: row for row in quantized.report(int8, [X], model=model).rows}
    assert {"graph", "heads.class", "heads.global"} <= rows.keys()
    assert rows["heads.class"].runs_in == "int8"
    partly = quantized.quantize(model, [X], engine=engine, exclude=["heads.class"])
    rows = {row.path: row for row in quantized.report(partly).rows}
    assert (rows["heads.class"].runs_in, rows["heads.global"].runs_in) == ("float", "int8")


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_models_are_trained(engine: str) -> None:
    model = Named()
    before = members(model)
    prepared = quantized.prepare_qat(model, X, engine=engine)
    assert members(model) == before
    sum(output.square().mean() for output in prepared(X).values()).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    prepared.eval()
    check_close(quantized.convert(prepared)(X), prepared(X), 25)


@pytest.mark.parametrize("format", ["pt2", "lowered", "onnx"])
def test_files_hold_models(format: str, tmp_path: Path) -> None:
    model = Named().eval()
    before, expected = members(model), model(X)
    path = tmp_path / ("model.onnx" if format == "onnx" else "model.pt2")
    deploy.export(model, X, path, format=None if format == "lowered" else format)
    assert members(model) == before
    check_close(deploy.load(path)(X[:1]), {name: tensor[:1] for name, tensor in expected.items()}, 100)
    if format != "onnx":
        check_close(torch.export.load(path).module()(X), expected, 100)


@pytest.mark.parametrize("engine", [None, "eager"])
def test_torchscript_names_the_child(engine: str | None, tmp_path: Path) -> None:
    model = Named().eval()
    model = model if engine is None else quantized.quantize(model, [X], engine=engine)
    with pytest.raises(ValueError, match=r"must not use keywords .*, got '\S*(from|class)': rename it"):
        deploy.export(model, X, tmp_path / "model.pt", format="torchscript")


@pytest.mark.parametrize("name", ["qconfig", "activation_post_process", "is_rewritten", "takes_int8", "fused_into"])
def test_names_of_attributes_of_the_eager_engine(name: str) -> None:
    for member in (nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(1)), None):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Module())
        model[1].forward = lambda x: x  # type: ignore[method-assign]
        if member is None:
            model[1].register_buffer(name, torch.ones(1))
        else:
            setattr(model[1], name, member)
        with pytest.raises(ValueError, match=rf"1 has one named '{name}': rename it, or quantize with engine='pt2e'"):
            quantized.quantize(model.eval(), [X])


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.parametrize("name", ["self", "operations", "module", "quant", "model"])
def test_names_that_could_be_attributes(engine: str, name: str) -> None:
    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules[name](x).relu() + x

    model = nn.Sequential(Child(), nn.Conv2d(3, 3, 1)).eval()
    check_close({"y": quantized.quantize(model, [X], engine=engine)(X)}, {"y": model(X)}, 25)
