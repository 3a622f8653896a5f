"""Flattened int8 containers call kernels directly, with no observable difference except their speed."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager import flat_sequential, post_ops
from torchvision_layers.quantized.eager.flat_sequential import FlatSequential
from torchvision_layers.quantized.eager.int8_modules import use_backend
from torchvision_layers.quantized.eager.int8_pools import INT8_POOLS
from torchvision_layers.quantized.eager.support import is_int8

from ._support import X, float_model, is_flat, record_calls, run_unflattened

# torch saves and copies int8 tensors through a storage class that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


@pytest.fixture(scope="module", params=["x86", "onednn"])
def calibrated(request: pytest.FixtureRequest) -> Iterator[quantized.QuantizableModel]:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post_ops, "_WORTHWHILE", 0)
        batches = [torch.randn(8, 3, 12, 10) for _ in range(2)]
        yield quantized.quantize(float_model(), batches, backend=request.param)


@pytest.fixture
def model(calibrated: quantized.QuantizableModel) -> quantized.QuantizableModel:
    """A copy, for tests that change the model or see its first call."""
    return copy.deepcopy(calibrated)


def test_outputs_are_bit_equal_to_module_calls(calibrated: quantized.QuantizableModel) -> None:
    for x in (X, X[:1], torch.randn(3, 3, 9, 17), X):
        assert torch.equal(calibrated(x), run_unflattened(calibrated, x))
        assert is_flat(calibrated, x)
    with record_calls(calibrated) as calls:
        run_unflattened(calibrated, X)
    assert any(isinstance(module, tnn.BasicBlock) for module in calls), "module calls are recorded"


PATHS = {
    "the container": "model",
    "a container within": "model.1",
    "a layer": "model.1.0",
    "a kernel": "model.1.0.conv1",
    "a sum": "model.1.0.skip_add",
    "the last kernel": "model.6",
    "an identity": "model.5.dropout",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_hooks_fire(model: quantized.QuantizableModel, path: str, when: str) -> None:
    expected, calls = run_unflattened(model, X), []
    if when == "after":
        model(X)
    module = model.get_submodule(path)
    handles = [
        module.register_forward_pre_hook(lambda m, args: calls.append("before")),
        module.register_forward_hook(lambda m, args, output: calls.append("after")),
    ]
    assert torch.equal(model(X), expected)
    assert calls == ["before", "after"]
    handles.pop().remove()
    assert torch.equal(model(X), expected)
    assert calls == ["before", "after", "before"]
    assert not is_flat(model)
    handles.pop().remove()
    assert is_flat(model)
    assert torch.equal(model(X), expected)
    assert len(calls) == 4


def test_hooks_may_change_values(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    block = model.model[1][0]
    handle = block.register_forward_hook(lambda m, args, output: args[0])
    changed = model(X)
    assert not torch.equal(changed, expected)
    assert torch.equal(changed, run_unflattened(model, X))
    handle.remove()
    assert torch.equal(model(X), expected)


def test_replaced_children_take_effect(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    block, act = model.model[1][0], model.model[5].activation
    model.model[1][0] = nn.Identity()
    assert torch.equal(model(X), run_unflattened(model, X))
    assert not torch.equal(model(X), expected)
    model.model[1][0] = block
    assert torch.equal(model(X), expected)
    model.model[5].activation = nn.Hardtanh(-0.1, 0.1)  # a child of a child
    assert torch.equal(model(X), run_unflattened(model, X))
    assert not torch.equal(model(X), expected)
    model.model[5].activation = act
    model.model.append(nn.Hardtanh(-0.01, 0.01))
    assert float(model(X).abs().max()) <= 0.02
    assert not torch.equal(model(X), expected)
    del model.model[-1]
    assert torch.equal(model(X), expected)
    del model.model[1][1]
    assert torch.equal(model(X), run_unflattened(model, X))


def test_loaded_state_takes_effect(model: quantized.QuantizableModel) -> None:
    other = quantized.quantize(float_model(), [torch.randn(4, 3, 12, 10)], backend=model.backend)
    expected = model(X)
    assert not torch.equal(other(X), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), expected)
    assert is_flat(other)


def test_changed_scale_takes_effect(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    model.model[-1].scale *= 2
    assert torch.equal(model(X), run_unflattened(model, X))
    assert not torch.equal(model(X), expected)


def test_copies_are_independent(model: quantized.QuantizableModel) -> None:
    expected = model(X)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), expected)
    assert is_flat(copied)
    copied.model[1][0] = nn.Identity()
    assert not torch.equal(copied(X), expected)
    assert torch.equal(model(X), expected)
    with record_calls(model) as calls:
        copied(X)
    assert not calls, "the copy record_calls a module of the original"


def test_called_model_is_pickled() -> None:
    """Uses our int8 linear layers, since torch's own int8 modules cannot be pickled."""
    layers, x = nn.Sequential(nn.Linear(8, 6), nn.Sequential(tnn.LinearDropoutAct(6, 4))).eval(), torch.randn(32, 8)
    model = quantized.quantize(layers, [x], backend="onednn").model
    input = torch.quantize_per_tensor(x, 0.02, 128, torch.quint8)
    with use_backend("onednn"):
        expected = model(input)
        loaded = pickle.loads(pickle.dumps(model))
        assert type(loaded) is FlatSequential
        assert torch.equal(loaded(input).int_repr(), expected.int_repr())


class Int8Tracer(torch.fx.Tracer):
    """Treats our int8 modules as leaves, as fx does with those of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_own = is_int8(m) or type(m) in INT8_POOLS.values()
        return is_own or super().is_leaf_module(m, module_qualified_name)


def test_fx_traces_modules(model: quantized.QuantizableModel) -> None:
    model(X)
    graph = Int8Tracer().trace(model.model)
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    assert {"1.0.conv1", "1.0.skip_add", "6"} < set(targets)
    traced = torch.fx.GraphModule(model.model, graph)
    with use_backend(model.backend):
        input = model.quant(X)
        assert torch.equal(traced(input).int_repr(), model.model(input).int_repr())
    assert is_flat(model)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_called_model_is_scripted(model: quantized.QuantizableModel) -> None:
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


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout()
        self.rest = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.conv(x), self.drop(input=x)], 1)
        return x + self.rest(joined)


@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_rewritten_forwards_are_flattened(backend: str) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Joined(), Joined()), nn.Conv2d(4, 2, 1)).eval()
    model = quantized.quantize(whole, [X], backend=backend)
    with record_calls(model) as calls:
        output = model(X)
    assert not any(isinstance(module, Joined) for module in calls)
    assert torch.equal(output, run_unflattened(model, X))
    model.model[1][1].rest[0] = nn.Identity()
    with pytest.raises(RuntimeError):  # a replaced child takes effect: the shapes no longer match
        model(X)


def test_forwards_are_flattened_before_the_first_call(
    model: quantized.QuantizableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[nn.Module] = []
    original: Callable[..., object] = flat_sequential._flat_forward

    def recorded(root: nn.Module, kernels: flat_sequential.Kernels) -> object:
        roots.append(root)
        return original(root, kernels)

    monkeypatch.setattr(flat_sequential, "_flat_forward", recorded)
    copied = copy.deepcopy(model)
    assert copied.model in roots
    roots.clear()
    for _ in range(3):
        copied(X)
    assert not roots, "flattening during a call would race with calls in other threads"
