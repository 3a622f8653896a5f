"""Lazy layers before and at the first batch; the conformance matrix checks the layers that they become."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing._checks.distributed import group

# Each lazy layer, and the layer with 6 input channels that it should become.
CONV: dict[str, Any] = {"out_channels": 8, "groups": 2}
GATE: dict[str, Any] = {"squeeze_channels": 4}
STABLE = [
    pytest.param(partial(tnn.LazyConvNormAct, **CONV), partial(tnn.ConvNormAct, 6, **CONV), id="conv"),
    pytest.param(partial(tnn.LazySqueezeExcitation, **GATE), partial(tnn.SqueezeExcitation, 6, **GATE), id="gate"),
]
PAIRS = [*STABLE, pytest.param(partial(enn.SEBlock, ratio=2), partial(enn.SEBlock, 6, ratio=2), id="ratio")]
each_pair = pytest.mark.parametrize(("make_lazy", "make_eager"), PAIRS)
Make = Callable[..., nn.Module]


def batch(channels: int = 6) -> Tensor:
    return torch.randn(2, channels, 7, 9)


def assert_same(layer: nn.Module, expected: nn.Module) -> None:
    """Checks that classes, attributes, children and values are equal."""
    assert str(layer) == str(expected)
    for (path, module), (_, other) in zip(layer.named_modules(), expected.named_modules(), strict=True):
        assert type(module) is type(other), path
        assert vars(module).keys() == vars(other).keys(), path
    state, other_state = layer.state_dict(), expected.state_dict()
    assert list(state) == list(other_state)
    assert all(torch.equal(value, other_state[key]) for key, value in state.items())


@each_pair
def test_it_becomes_the_layer_that_the_same_seed_initializes(make_lazy: Make, make_eager: Make) -> None:
    layer, x = make_lazy(), batch()
    assert isinstance(layer, LazyModuleMixin)
    assert layer.has_uninitialized_params()
    torch.manual_seed(3)
    layer.eval()(x)
    torch.manual_seed(3)
    expected = make_eager().eval()
    assert_same(layer, expected)
    assert torch.equal(layer(x), expected(x))


@each_pair
@pytest.mark.parametrize("training", [True, False])
def test_first_batch_preserves_mode_hooks_and_parameters(make_lazy: Make, make_eager: Make, training: bool) -> None:
    layer = make_lazy().train(training)
    parameters, called = list(layer.parameters()), []
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer.register_forward_hook(lambda module, args, output: called.append(type(module).__name__))
    layer(batch() + 1.0).sum().backward()
    assert called == [type(make_eager()).__name__]
    assert all(module.training is training for module in layer.modules())
    assert all(new is old for new, old in zip(layer.parameters(), parameters, strict=True))
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    assert not all(torch.equal(new, old) for new, old in zip(parameters, before, strict=True))


@each_pair
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_after_a_dry_run(make_lazy: Make, make_eager: Make, mode: Callable[[], Any]) -> None:
    layer = make_lazy()
    with mode():
        layer(batch())
    layer(batch()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("make", "input", "error", "message"),
    [
        (tnn.LazyConvNormAct, None, TypeError, "input must be a Tensor, got NoneType"),
        (tnn.LazyConvNormAct, torch.zeros(()), ValueError, "input must have 4 dimensions, got 0"),
        (tnn.LazyConvNormAct, torch.zeros(6, 7, 9), ValueError, r"must have 4 dimensions, got 3: shape \[6, 7, 9\]"),
        (tnn.LazyConvNormAct, torch.zeros(2, 0, 7, 9), ValueError, "in_channels must be at least 1, got 0"),
        (
            partial(tnn.LazyConvNormAct, groups=4),
            torch.zeros(2, 6, 7, 9),
            ValueError,
            "in_channels must be divisible by groups, got 6 and 4",
        ),
        *(
            (
                make,
                torch.zeros(2, 6, 7, 9, dtype=dtype),
                TypeError,
                f"must have the dtype of the layer, torch.float32, got {dtype}",
            )
            for make in (tnn.LazyConvNormAct, tnn.LazySqueezeExcitation)
            for dtype in (torch.uint8, torch.float64)
        ),
        (tnn.LazySqueezeExcitation, torch.zeros(6), ValueError, "input must have 4 dimensions, got 1"),
        (tnn.LazySqueezeExcitation, torch.zeros(2, 0, 7, 9), ValueError, "input_channels must be at least 1, got 0"),
        (tnn.LazySqueezeExcitation, torch.zeros(2, 6, 0, 9), ValueError, r"one pixel, got shape \[2, 6, 0, 9\]"),
        (
            partial(tnn.LazySqueezeExcitation, scale_activation=partial(nn.PReLU, 8)),
            torch.zeros(2, 6, 7, 9),
            ValueError,
            "scale_activation has num_parameters=8, expected 6",
        ),
    ],
)
def test_a_bad_first_batch_keeps_it_lazy(make: Make, input: object, error: type[Exception], message: str) -> None:
    layer = make(8)
    before = repr(layer)
    with pytest.raises(error, match=message):
        layer(input)
    assert repr(layer) == before
    assert layer.has_uninitialized_params()
    assert layer(batch(8)).shape == (2, 8, 7, 9)
    assert not isinstance(layer, LazyModuleMixin)


def test_activation_parameters_match_the_channels_of_the_first_batch() -> None:
    layer = tnn.LazySqueezeExcitation(4, nn.PReLU(4), partial(nn.PReLU, 6))
    x = batch()
    layer(x)
    expected = torchvision.ops.SqueezeExcitation(6, 4, partial(nn.PReLU, 4), partial(nn.PReLU, 6))
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), expected(x))


def test_layer_arguments_must_not_be_lazy() -> None:
    with pytest.raises(TypeError, match="se_layer must not be lazy, since .*, got LazySqueezeExcitation"):
        tnn.BasicBlock(8, 8, se_layer=partial(tnn.LazySqueezeExcitation, 2))
    for layer in (tnn.LazySqueezeExcitation(2), nn.LazyBatchNorm2d()):
        with pytest.raises(TypeError, match=f"norm_layer must not be lazy.*got {type(layer).__name__}"):
            tnn.ConvNormAct(3, 8, norm_layer=layer)


@pytest.mark.parametrize(
    ("make_lazy", "trained"),
    [
        (
            partial(tnn.LazyConvNormAct, 8, 5, stride=2, groups=2, dilation=2, activation_layer=nn.SiLU),
            torchvision.ops.Conv2dNormActivation(
                6, 8, 5, stride=2, groups=2, dilation=2, norm_layer=nn.BatchNorm2d, activation_layer=nn.SiLU
            ),
        ),
        (partial(tnn.LazyConvNormAct, 8, norm_layer=None), torchvision.ops.Conv2dNormActivation(6, 8, norm_layer=None)),
        (partial(tnn.LazySqueezeExcitation, 4), torchvision.ops.SqueezeExcitation(6, 4)),
    ],
    ids=["conv", "conv with bias", "gate"],
)
@pytest.mark.parametrize("before_first_batch", [True, False])
def test_checkpoints_of_torchvision_load(make_lazy: Make, trained: nn.Module, before_first_batch: bool) -> None:
    trained, x = copy.deepcopy(trained), batch()
    trained(x)  # changes the running statistics
    model = nn.Sequential(make_lazy())
    if not before_first_batch:
        model(x)
    state = {f"0.{key}": value for key, value in trained.state_dict().items()}
    model.load_state_dict(state, strict=True)
    with pytest.raises(ValueError, match="input must have 6 channels, got 4"):
        model(batch(4))
    torch.testing.assert_close(model.eval()(x), trained.eval()(x))
    assert str(model[0]) == str(make_lazy.func.cls_to_become(6, *make_lazy.args, **make_lazy.keywords))


@each_pair
def test_a_lazy_state_can_be_saved_and_loaded(make_lazy: Make, make_eager: Make) -> None:
    file = io.BytesIO()
    torch.save(make_lazy().state_dict(), file)
    file.seek(0)
    loaded = make_lazy()
    loaded.load_state_dict(torch.load(file, weights_only=False), strict=True)  # torch cannot load these safely
    assert loaded.has_uninitialized_params()
    assert loaded(batch()).shape[0] == 2


@each_pair
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_before_and_after_the_first_batch(
    make_lazy: Make, make_eager: Make, duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    layer = make_lazy()
    copied, x = duplicate(layer), batch()
    assert copied.has_uninitialized_params()
    for lazy in (layer, copied):
        torch.manual_seed(1)
        lazy(x)
    assert_same(copied, layer)
    assert_same(duplicate(copied), layer)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in layer.parameters()}


@each_pair
def test_device_and_dtype_set_before_the_first_batch(make_lazy: Make, make_eager: Make) -> None:
    for layer in (make_lazy().double(), make_lazy(dtype=torch.float64)):
        assert layer(batch().double()).dtype is torch.float64
        assert all(parameter.dtype is torch.float64 for parameter in layer.parameters())
    with torch.device("meta"):
        on_meta = make_lazy()
    for layer in (on_meta, make_lazy(device="meta")):
        assert layer(batch().to("meta")).is_meta
        assert all(parameter.is_meta for parameter in layer.parameters())


def test_batch_norms_can_be_converted_before_the_first_batch() -> None:
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(tnn.LazyConvNormAct(8))
    layer.eval()(batch())
    assert type(layer) is tnn.ConvNormAct
    assert type(layer[1]) is nn.SyncBatchNorm


@each_pair
def test_tracing_needs_a_batch_first(make_lazy: Make, make_eager: Make) -> None:
    model = nn.Sequential(make_lazy())
    with pytest.raises(RuntimeError, match=r"must run once before it is traced: call model\(batch\)"):
        torch.fx.symbolic_trace(model)
    x = batch()
    expected = model.eval()(x)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)


@each_pair
def test_processes_need_a_batch_first(make_lazy: Make, make_eager: Make, tmp_path: Path) -> None:
    model = nn.Sequential(make_lazy())
    with group(tmp_path, torch.device("cpu")):
        with pytest.raises(RuntimeError, match="Modules with uninitialized parameters"):
            nn.parallel.DistributedDataParallel(model)
        model(batch())
        assert nn.parallel.DistributedDataParallel(model)(batch()).shape[0] == 2


@pytest.mark.parametrize(("make_lazy", "make_eager"), STABLE)
def test_quantizing_needs_a_batch_first(make_lazy: Make, make_eager: Make) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(make_lazy())).eval()
    name, x = type(model[1][0]).__name__, torch.randn(4, 3, 9, 9)
    for call in (quantized.quantizable, quantized.prepare_qat, partial(quantized.quantize, batches=[x])):
        with pytest.raises(TypeError, match=rf"model must not contain lazy modules, got {name} at 1\.0"):
            call(model)
    expected = model(x)
    assert torch.equal(quantized.quantizable(model)(x), expected)
    int8 = quantized.quantize(model, [x], backend="onednn")
    noise = (int8(x) - expected).square().mean() / expected.square().mean()
    assert 0 < noise < 1e-2
