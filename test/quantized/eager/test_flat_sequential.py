"""Int8 containers run as a straight line of kernels, and nobody can tell but by the time."""

import copy
import functools
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager import flat_sequential, post_ops
from torchvision_layers.quantized.eager.flat_sequential import FlatSequential
from torchvision_layers.quantized.eager.int8_modules import use_backend
from torchvision_layers.quantized.eager.support import is_int8

from ._support import X, body, called, is_flat, one_by_one

# torch saves and copies int8 tensors by storages that it deprecates.
USES_STORAGES = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


@functools.cache
def int8_body(backend: str) -> quantized.QuantizableModel:
    """Quantized once per backend, because calibration takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post_ops, "_WORTHWHILE", 0)
        return quantized.quantize(body(), [torch.randn(8, 3, 12, 10) for _ in range(2)], backend=backend)


@pytest.fixture(params=["x86", "onednn"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> quantized.QuantizableModel:
    monkeypatch.setattr(post_ops, "_WORTHWHILE", 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        return copy.deepcopy(int8_body(request.param))


def test_same_bits_by_fewer_calls(model: quantized.QuantizableModel) -> None:
    for x in (X, X[:1], torch.randn(3, 3, 9, 17), X):
        assert torch.equal(model(x), one_by_one(model, x))
        assert is_flat(model, x)
    with called(model) as seen:
        one_by_one(model, X)
    assert any(isinstance(module, tnn.BasicBlock) for module in seen), "calls are seen"


PATHS = {
    "the container": "model",
    "a container within": "model.1",
    "a layer": "model.1.0",
    "a kernel": "model.1.0.conv1",
    "a sum": "model.1.0.skip_add",
    "the last kernel": "model.6",
    "what does nothing": "model.5.dropout",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_hooks_fire(model: quantized.QuantizableModel, path: str, when: str) -> None:
    expected, seen = one_by_one(model, X), []
    if when == "after":
        model(X)
    module = model.get_submodule(path)
    handles = [
        module.register_forward_pre_hook(lambda m, args: seen.append("before")),
        module.register_forward_hook(lambda m, args, output: seen.append("after")),
    ]
    assert torch.equal(model(X), expected)
    assert seen == ["before", "after"]
    handles.pop().remove()
    assert torch.equal(model(X), expected)
    assert seen == ["before", "after", "before"]
    assert not is_flat(model)
    handles.pop().remove()
    assert is_flat(model)
    assert torch.equal(model(X), expected)
    assert len(seen) == 4


def test_hooks_may_change_values(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    block = model.model[1][0]
    handle = block.register_forward_hook(lambda m, args, output: args[0])
    changed = model(X)
    assert not torch.equal(changed, expected)
    assert torch.equal(changed, one_by_one(model, X))
    handle.remove()
    assert torch.equal(model(X), expected)


def test_other_children_take_effect(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    block, act = model.model[1][0], model.model[5].activation
    model.model[1][0] = nn.Identity()
    assert torch.equal(model(X), one_by_one(model, X))
    assert not torch.equal(model(X), expected)
    model.model[1][0] = block
    assert torch.equal(model(X), expected)
    model.model[5].activation = nn.Hardtanh(-0.1, 0.1)  # deep below
    assert torch.equal(model(X), one_by_one(model, X))
    assert not torch.equal(model(X), expected)
    model.model[5].activation = act
    model.model.append(nn.Hardtanh(-0.01, 0.01))
    assert float(model(X).abs().max()) <= 0.02
    assert not torch.equal(model(X), expected)
    del model.model[-1]
    assert torch.equal(model(X), expected)
    del model.model[1][1]
    assert torch.equal(model(X), one_by_one(model, X))


@USES_STORAGES
def test_loading_takes_effect(model: quantized.QuantizableModel) -> None:
    other = quantized.quantize(body(), [torch.randn(4, 3, 12, 10)], backend=model.backend)
    expected = model(X)
    assert not torch.equal(other(X), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), expected)
    assert is_flat(other)


def test_attributes_take_effect(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    model.model[-1].scale *= 2
    assert torch.equal(model(X), one_by_one(model, X))
    assert not torch.equal(model(X), expected)


@USES_STORAGES
def test_copies_are_of_their_own(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), expected)
    assert is_flat(copied)
    copied.model[1][0] = nn.Identity()
    assert not torch.equal(copied(X), expected)
    assert torch.equal(model(X), expected)
    with called(model) as seen:
        copied(X)
    assert not seen, "a copy calls nothing of the original"


@USES_STORAGES
def test_pickled_after_a_call() -> None:
    """With our own projections: torch's own modules cannot be pickled."""
    layers, x = nn.Sequential(nn.Linear(8, 6), nn.Sequential(tnn.LinearDropoutAct(6, 4))).eval(), torch.randn(32, 8)
    model = quantized.quantize(layers, [x], backend="onednn").model
    input = torch.quantize_per_tensor(x, 0.02, 128, torch.quint8)
    with use_backend("onednn"):
        expected = model(input)
        loaded = pickle.loads(pickle.dumps(model))
        assert type(loaded) is FlatSequential
        assert torch.equal(loaded(input).int_repr(), expected.int_repr())


class OfKernels(torch.fx.Tracer):
    """Leaves our int8 modules alone, as fx does with those of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_int8(m) or super().is_leaf_module(m, module_qualified_name)


def test_traced_by_fx_as_modules(model: quantized.QuantizableModel) -> None:
    model(X)
    graph = OfKernels().trace(model.model)
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    assert {"1.0.conv1", "1.0.skip_add", "6"} < set(targets)
    traced = torch.fx.GraphModule(model.model, graph)
    with use_backend(model.backend):
        input = model.quant(X)
        assert torch.equal(traced(input).int_repr(), model.model(input).int_repr())
    assert is_flat(model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_after_a_call(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    script = torch.jit.script(model)
    with use_backend(model.backend):
        assert torch.equal(script(X), expected)
    assert is_flat(model)


def test_slices_run(model: quantized.QuantizableModel) -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(tnn.ConvNormAct(4, 4)), nn.Conv2d(4, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body[2:](self.body[:2](x))

    with use_backend(model.backend):
        assert torch.equal(model.dequant(model.model[3:](model.model[:3](model.quant(X)))), model(X))
    whole = Slices().eval()
    sliced = quantized.quantize(whole, [X], backend=model.backend)
    torch.testing.assert_close(sliced(X), whole(X), rtol=0, atol=0.1)


@USES_STORAGES
def test_lines_are_drawn_before_anything_runs(
    model: quantized.QuantizableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[nn.Module] = []
    draw: Callable[..., object] = flat_sequential._flat_forward

    def count(root: nn.Module, kernels: flat_sequential.Kernels) -> object:
        drawn.append(root)
        return draw(root, kernels)

    monkeypatch.setattr(flat_sequential, "_flat_forward", count)
    fresh = copy.deepcopy(model)
    assert fresh.model in drawn
    drawn.clear()
    for _ in range(3):
        fresh(X)
    assert not drawn, "other threads may run while a line is drawn"
