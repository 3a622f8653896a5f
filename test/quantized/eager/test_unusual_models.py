"""Unusual models either give correct results or raise an error that names the module."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized.eager import rewritten_copy
from torchvision_layers.quantized.eager.first_run import FirstRun
from torchvision_layers.testing._checks._quantization import decibels

IMAGES = torch.randn(8, 3, 12, 10, generator=torch.Generator().manual_seed(0))
BACKENDS = ("x86", "onednn", "qnnpack")


class InplaceResidual(nn.Module):
    """Adds an in-place activation of a convolution's input to its output; images are large enough to fuse post-ops."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.relu = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)
        self.add = quantized.Addition()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(x)
        return self.add(y, self.relu(x))


def test_convolution_runs_before_its_input_changes() -> None:
    model, images = InplaceResidual().eval(), torch.randn(2, 3, 160, 160)
    assert decibels(model(images), quantized.quantize(model, [images], backend="onednn")(images)) > 30
    prepared = quantized.prepare_qat(model, images, backend="onednn")
    prepared(images)
    assert decibels(model(images), quantized.convert(prepared)(images)) > 28


def test_block_registered_twice() -> None:
    block = tnn.BasicBlock(32, 32)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 32, 1), block), nn.Sequential(nn.Conv2d(32, 32, 1), block)).eval()
    images = torch.randn(2, 3, 80, 80)
    assert decibels(model(images), quantized.quantize(model, [images], backend="onednn")(images)) > 28


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "module",
    [
        nn.Hardtanh(-0.3, 0.2),
        nn.Sequential(nn.Identity(), nn.MaxPool2d(2), nn.ReLU6()),
        nn.AvgPool2d(3, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
    ],
    ids=["hardtanh", "relu6", "count_include_pad", "divisor"],
)
def test_kernels_with_wrong_results_are_avoided(module: nn.Module, backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), module).eval()
    converted = quantized.quantize(model, [IMAGES], backend=backend)
    assert decibels(model(IMAGES), converted(IMAGES)) > 28


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_are_rounded_to_their_own_step(backend: str) -> None:
    """A step for the values before the clamp would round all values at a bound the same way, also in their mean."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(-0.1, 0.1), nn.AdaptiveAvgPool2d(1)).eval()
    assert decibels(model(IMAGES), quantized.quantize(model, [IMAGES], backend=backend)(IMAGES)) > 28


@pytest.mark.parametrize("backend", BACKENDS)
def test_loaded_state_is_converted_without_a_batch(backend: str) -> None:
    model = nn.Sequential(tnn.ConvNormAct(3, 4), nn.Conv2d(4, 4, 1))
    trained, loaded = (quantized.prepare_qat(model, backend=backend) for _ in range(2))
    trained(IMAGES)
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(quantized.convert(loaded)(IMAGES), quantized.convert(trained)(IMAGES))


def test_invalid_example_raises() -> None:
    with pytest.raises(TypeError, match="example must be a float32 tensor, got str"):
        quantized.prepare_qat(tnn.ConvNormAct(3, 4), "image")  # type: ignore[arg-type]


def test_loading_keeps_model_frozen() -> None:
    prepared = quantized.prepare_qat(tnn.ConvNormAct(3, 4))
    with pytest.raises(ValueError, match="must have run on batches, or have loaded a state, before .* frozen"):
        quantized.freeze(prepared)
    prepared(IMAGES)
    unfrozen_state = {key: value.clone() for key, value in prepared.state_dict().items()}
    quantized.freeze(prepared)
    prepared.load_state_dict(unfrozen_state)
    prepared(9 * IMAGES)
    assert torch.equal(
        prepared.state_dict()["entry.activation_post_process.scale"],
        unfrozen_state["entry.activation_post_process.scale"],
    )


def test_forward_set_on_instance_raises() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).eval()
    model[1].forward = lambda x: F.conv2d(x, model[1].weight) * 5
    with pytest.raises(TypeError, match=r"1 is a Conv2d \(.*\), which int8 is not known to run"):
        quantized.quantize(model, [IMAGES])


def test_subclass_with_property_raises() -> None:
    class Named(tnn.ConvNormAct):
        @property
        def size(self) -> int:
            return 4

    with pytest.raises(TypeError, match=r"0 is a Named \(.*\), a ConvNormAct that overrides size"):
        quantized.quantizable(nn.Sequential(Named(3, 4)))


def test_pickling_prepared_and_int8_models_raises() -> None:
    """torch could save them, but not load them."""
    model = quantized.quantizable(tnn.ConvNormAct(3, 4).eval())
    assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGES), model(IMAGES))
    for whole in (quantized.quantize(model, [IMAGES]), quantized.prepare_qat(model)):
        with pytest.raises(TypeError, match="cannot be pickled as a whole: save its state_dict"):
            pickle.dumps(whole)


def test_hooks_of_converted_modules_are_kept() -> None:
    model = nn.Sequential(tnn.SqueezeExcitation(3, 2), nn.Flatten(), nn.Linear(360, 2)).eval()
    calls: list[str] = []
    model[0].avgpool.register_forward_hook(lambda *_: calls.append("pool"))
    model[2].register_forward_hook(lambda *_: calls.append("linear"))
    for backend in ("x86", "onednn"):
        converted = quantized.quantize(model, [IMAGES], backend=backend)
        calls.clear()
        converted(IMAGES)
        assert calls == ["pool", "linear"]


def test_layer_scale_is_reported_as_float() -> None:
    model = quantized.quantize(tnn.ConvNeXtBlock(3).eval(), [IMAGES])
    (row,) = [row for row in quantized.report(model).rows if row.path == "scale_entry"]
    assert (row.runs_in, row.why) == ("float", "has no int8 kernel")


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize("leftover", ["torch", "none"])
def test_foreign_qconfigs_are_ignored(leftover: str, is_qat: bool) -> None:
    """FX mode and torch.ao leave them in a model, where they would convert norms and skip convolutions."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), tnn.ConvNormAct(8, 8), nn.Flatten(2), nn.LayerNorm(120), nn.Linear(120, 4)
    )
    qconfig = torch.ao.quantization.get_default_qconfig("x86") if leftover == "torch" else None
    for module in model.eval().modules():
        module.qconfig = qconfig
    if is_qat:
        prepared = quantized.prepare_qat(model, IMAGES, backend="x86")
        prepared(IMAGES)
        model, int8 = prepared.eval(), quantized.convert(prepared)
    else:
        int8 = quantized.quantize(model, [IMAGES], backend="x86")
        assert all(module.qconfig is qconfig for module in model.modules())
    assert decibels(model(IMAGES), int8(IMAGES)) > 28
    assert {row.path for row in quantized.report(int8).rows if row.runs_in == "float"} == {"3"}


class ReadAgain(nn.Module):
    """Reads a tensor again after an activation wrote into it."""

    def __init__(self, act: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other, self.act, self.add = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), act, quantized.Addition()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, self.conv(x))


class OwnSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.sigmoid())


def call_twice(model: Any, y: Tensor) -> Tensor:
    z = model.other(y)
    model.act(y)
    model.act(z)
    return y * z


def read_view(model: Any, y: Tensor) -> Tensor:
    view = y.flatten(2)
    model.act(y)
    return view.mean(-1)


def branch(model: Any, y: Tensor) -> Tensor:
    return model.act(y) + y if float(y.detach().sum()) < 1e9 else y


WRITERS = {
    "silu": nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "relu": nn.ReLU(inplace=True),
    "own": OwnSwish(),
    "sequential": nn.Sequential(nn.SiLU(inplace=True)),
}
READS = {
    "sum": lambda model, y: model.act(y) + y,
    "observed sum": lambda model, y: model.add(model.act(y), y),
    "behind a convolution": lambda model, y: model.other(model.act(y)) + y,
    "pooled before": lambda model, y: F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0) + model.act(y),
    "twice": call_twice,
    "view": read_view,
    "branch": branch,
}


@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("act", WRITERS)
def test_tensors_are_read_again_after_writes(act: str, read: str, is_qat: bool) -> None:
    model = ReadAgain(WRITERS[act], READS[read]).eval()
    if is_qat:
        prepared = quantized.prepare_qat(model, IMAGES, backend="onednn")
        prepared(IMAGES)
        assert decibels(model(IMAGES), prepared.eval()(IMAGES)) > 25
        assert decibels(prepared(IMAGES), quantized.convert(prepared)(IMAGES)) > 25
    else:
        assert decibels(model(IMAGES), quantized.quantize(model, [IMAGES], backend="onednn")(IMAGES)) > 28


def test_write_into_the_input_of_a_block_raises() -> None:
    """The block returns another tensor than the one that it wrote into."""
    block = nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(8, 8, 1))
    with pytest.raises(RuntimeError, match="reads a tensor after an in-place module or a child wrote into it"):
        quantized.quantize(ReadAgain(block, READS["sum"]).eval(), [IMAGES], backend="x86")


def test_write_of_an_int8_child_into_the_input_of_a_float_forward_raises() -> None:
    """The child writes into an int8 tensor, which the ``forward`` in float does not see."""

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x) if float(x.sum()) > -1e9 else x
            return self.block(y) + y

    with pytest.raises(RuntimeError, match="reads a tensor after an in-place module or a child wrote into it"):
        quantized.quantize(PreActivation().eval(), [torch.randn(2, 3, 4, 4)])


@pytest.mark.parametrize("has_norm", [False, True])
def test_relu6_is_trained_with_its_clamp(has_norm: bool) -> None:
    """It holds without fake quantization, too, as the comparison at the end of ``prepare_qat`` needs."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(8)] if has_norm else []
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *norm, nn.ReLU6()).eval()
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        model[0].weight.mul_(30)
        prepared = quantized.prepare_qat(model, x).eval()
        prepared.apply(torch.ao.quantization.disable_fake_quant)
        assert torch.allclose(prepared(x), model(x), atol=1e-4)
        assert model(x).max() == 6


def test_few_images_show_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = rewritten_copy.run_first

    def run(model: nn.Module, batch: Inputs, excluded: Mapping[str, str]) -> tuple[Any, FirstRun]:
        sizes.append(len(batch.args[0]))
        return original(model, batch, excluded)

    monkeypatch.setattr(rewritten_copy, "run_first", run)
    quantized.quantize(nn.Conv2d(3, 4, 3).eval(), [torch.randn(6, 3, 9, 9)])
    assert sizes == [2]
