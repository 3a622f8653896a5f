"""State dicts of graphs and quantizable models: keys that could collide, freezing, and saving."""

import copy
import functools
import gc
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers.quantized import convert, freeze, prepare_qat, quantizable, quantize

X = torch.randn(4, 3, 8, 8)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Whole(nn.Module):
    """Has a backbone ``name`` with a child ``head``, and a ``head`` of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, Backbone())
        self.head = nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.get_submodule(self.name)(x))


def build(engine: str, name: str) -> nn.Module:
    if engine == "quantizable":
        return quantizable(Whole(name))
    if engine == "trained":
        return prepare_qat(Whole(name), X, engine="pt2e")
    return quantize(Whole(name), [X], engine="pt2e")


@functools.cache
def build_pair(engine: str, name: str) -> tuple[nn.Module, nn.Module]:
    return build(engine, name), build(engine, name)


@pytest.mark.parametrize("name", ["model", "body"])
@pytest.mark.parametrize("engine", ["quantizable", "trained", "int8"])
@pytest.mark.parametrize("prefix", ["", "model.", "body."])
def test_keys_starting_with_wrapper_attributes(engine: str, name: str, prefix: str) -> None:
    first, second = copy.deepcopy(build_pair(engine, name))
    if engine == "trained":
        first(X)
    outer = [nn.ModuleDict({prefix[:-1]: module}) if prefix else module for module in (first, second)]
    state = outer[0].state_dict()
    if engine != "int8":
        keys = [key for key in state if "activation_post_process" not in key]
        assert sorted(keys) == sorted(prefix + key for key in Whole(name).state_dict())
    outer[1].load_state_dict(state, strict=True)
    for key, value in outer[1].state_dict().items():
        assert torch.equal(value, state[key])
    if engine == "trained":
        first, second = convert(first), convert(second)
    assert torch.equal(first(X), second(X))


def test_keys_keep_order() -> None:
    model = Whole("model")
    assert list(quantizable(model).state_dict()) == list(model.state_dict())
    assert list(nn.Sequential(quantizable(model), nn.Linear(1, 1)).state_dict()) == [
        *(f"0.{key}" for key in model.state_dict()),
        "1.weight",
        "1.bias",
    ]


@pytest.mark.parametrize("outside", [False, True])
def test_loading_keeps_graph_frozen(outside: bool) -> None:
    graph = prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), X, engine="pt2e")
    graph(X)
    outer = nn.ModuleDict({"graph": graph}) if outside else graph
    state = copy.deepcopy(outer.state_dict())
    assert any(key.endswith("observer_enabled") and bool(value) for key, value in state.items())
    freeze(graph)
    for mode in (True, False):
        outer.load_state_dict(state)
        graph.train(mode)
        before = copy.deepcopy(graph.state_dict())
        graph(5 * X)
        after = graph.state_dict()
        assert not [key for key, value in after.items() if not torch.equal(value, before[key])]
        assert not any(bool(value) for key, value in after.items() if key.endswith("observer_enabled"))


def test_freezing_needs_a_batch_or_state() -> None:
    graph = prepare_qat(nn.Conv2d(3, 4, 3), X, engine="pt2e")
    with pytest.raises(
        ValueError, match="model must have run on batches, or have loaded a state, before its ranges are frozen"
    ):
        freeze(graph)
    assert not graph.is_frozen
    other = prepare_qat(nn.Conv2d(3, 4, 3), X, engine="pt2e")
    other(X)
    graph.load_state_dict(other.state_dict())
    freeze(graph)
    assert torch.equal(graph(5 * X), graph(5 * X))


@pytest.mark.parametrize("engine", ["trained", "int8"])
def test_pickling_raises_and_copying_works(engine: str) -> None:
    graph = build(engine, "model")
    for save in (pickle.dumps, lambda module: torch.save(module, io.BytesIO())):
        for module in (graph, nn.Sequential(graph)):
            with pytest.raises(TypeError, match=r"cannot be pickled; give its state_dict\(\) to torch.save.*export"):
                save(module)
    for copied in (copy.copy(graph), copy.deepcopy(graph), copy.deepcopy(nn.Sequential(graph))[0]):
        assert copied is not graph
        assert type(copied) is type(graph)
        assert torch.equal(copied(X), graph(X))
    assert copy.deepcopy(graph).body is not graph.body
    assert copy.deepcopy(graph).state_dict().keys() == graph.state_dict().keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exported_program_is_saved_and_loaded() -> None:
    graph, file = build("int8", "model"), io.BytesIO()
    torch.export.save(torch.export.export(graph, (X,)), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(X), graph(X))


def test_models_are_released() -> None:
    """torchao's caches would keep each of them."""
    model, x = nn.Sequential(nn.Conv2d(3, 53, 3), nn.ReLU(), nn.Conv2d(53, 4, 1)), torch.randn(2, 3, 8, 8)
    prepared = prepare_qat(model, x, engine="pt2e")
    prepared(x)
    int8 = convert(prepared)
    quantize(model.eval(), [x], engine="pt2e")(x)
    del model, prepared, int8
    gc.collect()
    assert not [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter) and 53 in value.shape]
