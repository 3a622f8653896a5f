"""The last comparison finds what earlier steps would let through, and nothing else."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.ao.quantization as taoq
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized import verification
from torchvision_layers.quantized.eager import fusion, rewriting, rewritten_copy
from torchvision_layers.quantized.eager import workflow as eager
from torchvision_layers.quantized.eager.first_run import FirstRun
from torchvision_layers.quantized.eager.in_place import Memory
from torchvision_layers.quantized.eager.int8_arithmetic import Int8Concatenation
from torchvision_layers.quantized.eager.torch_ao import preparing, weight_ranges
from torchvision_layers.quantized.pt2e import workflow as pt2e
from torchvision_layers.quantized.rounding import rounded_outputs

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
#: Engines and backends. The slow tests add those that differ little from the first of each engine.
ENGINES = [
    ("eager", "onednn"),
    ("pt2e", "x86"),
    pytest.param("eager", "x86", marks=pytest.mark.slow),
    pytest.param("eager", "qnnpack", marks=pytest.mark.slow),
    pytest.param("pt2e", "onnxruntime", marks=pytest.mark.slow),
]
WRONG = "computes something else than the model: .* where rounding explains"


class TwoConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)


class WriteThroughView(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, :4] = 0
        return self.b(x)


class FunctionalReLU6(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu6(4 * self.a(x)))


class InPlaceActivation(TwoConvs):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.add = nn.SiLU(inplace=True), quantized.Addition()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.add(self.act(y), y)


class SharedActivation(TwoConvs):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return self.act(y), self.act(self.b(100 * y))


class DistantRanges(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cat([y, 10 * y], 1)


class PaddedConv(nn.Sequential):
    """TensorFlow's "same" padding in a container."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, **options: Any) -> None:
        super().__init__(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(in_channels, out_channels, 2, bias=bias))


def norm_after_container() -> nn.Module:
    """Channels of very different size before the norm."""
    block = tnn.ConvNormAct(3, 16, conv_layer=PaddedConv, activation_layer=nn.ReLU6)
    with torch.no_grad():
        sizes = torch.linspace(-2, 2, 16).exp()
        block.get_parameter("0.1.weight").mul_(sizes[:, None, None, None])
        block.get_buffer("1.running_var").copy_(0.3 * sizes**2)
    return nn.Sequential(block, nn.Conv2d(16, 4, 1))


def channel_without_weights() -> nn.Module:
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight[2] = 0
        conv.get_parameter("bias")[2] = 50
    return nn.Sequential(conv)


def _concatenate_at_the_first_scale(module: Int8Concatenation, inputs: list[Tensor]) -> Tensor:
    step = inputs[0].q_scale(), inputs[0].q_zero_point(), inputs[0].dtype
    return torch.ops.aten.cat([torch.quantize_per_tensor(tensor.dequantize(), *step) for tensor in inputs], module.dim)


FAULTS: dict[str, tuple[Callable[[], nn.Module], str, str, tuple[object, str, object]]] = {
    "W1": (WriteThroughView, "pt2e", "x86", (pt2e, "reread_after_writes", lambda module: [])),
    "W3 relu6": (FunctionalReLU6, "eager", "qnnpack", (preparing, "_NOT_ON_QNNPACK", ())),
    "W3 zeros": (
        channel_without_weights,
        "eager",
        "qnnpack",
        (weight_ranges, "_BoundedSteps", taoq.MovingAveragePerChannelMinMaxObserver),
    ),
    "W4": (InPlaceActivation, "eager", "x86", (rewriting, "_memory", lambda model, run: Memory(set(), set()))),
    "W5": (SharedActivation, "eager", "x86", (FirstRun, "distinct_below", lambda run, path: set())),
    "W7": (DistantRanges, "eager", "onednn", (Int8Concatenation, "forward", _concatenate_at_the_first_scale)),
    "W8": (norm_after_container, "eager", "onednn", (fusion, "is_transparent", lambda module: False)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_without_their_fix(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    build, engine, backend, patch = FAULTS[fault]
    model = build().eval()
    quantized.quantize(model, [X], engine=engine, backend=backend)
    monkeypatch.setattr(*patch)
    monkeypatch.setattr(rewritten_copy, "check_same_results", lambda *args: None)  # it finds W4 as well
    monkeypatch.setattr(eager, "fit_biases", nullcontext)  # it repairs what W3 breaks
    with pytest.raises(RuntimeError, match=WRONG):
        quantized.quantize(model, [X], engine=engine, backend=backend)
    assert quantized.quantize(model, [X], engine=engine, backend=backend, check=False).stage == "int8"


def test_writes_are_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, backend, patch = FAULTS["W1"]
    monkeypatch.setattr(*patch)
    with pytest.raises(RuntimeError, match="the prepared model computes something else"):
        quantized.prepare_qat(WriteThroughView(), X, engine=engine, backend=backend)


def test_faults_of_the_conversion_are_found_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, engine, backend, patch = FAULTS["W4"]
    monkeypatch.setattr(*patch)
    monkeypatch.setattr(rewritten_copy, "check_same_results", lambda *args: None)
    prepared = quantized.prepare_qat(InPlaceActivation(), X, engine=engine, backend=backend)
    prepared(X).sum().backward()
    with pytest.raises(RuntimeError, match=WRONG):
        quantized.convert(prepared)
    assert quantized.convert(prepared, check=False).stage == "int8"


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_prepared_model_is_compared(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, model = {"eager": eager, "pt2e": pt2e}[engine], tnn.ConvNormAct(3, 8)
    prepare = workflow.prepare_qat

    def wrong(*args: Any) -> nn.Module:
        prepared: nn.Module = prepare(*args)
        with torch.no_grad():
            next(prepared.parameters()).mul_(1.1)
        return prepared

    quantized.prepare_qat(model, X, engine=engine)
    monkeypatch.setattr(workflow, "prepare_qat", wrong)
    with pytest.raises(RuntimeError, match="the prepared model computes something else"):
        quantized.prepare_qat(model, X, engine=engine)
    assert quantized.prepare_qat(model, X, engine=engine, check=False).training


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_prepared_model_remembers_images(engine: str) -> None:
    prepared = quantized.prepare_qat(tnn.ConvNormAct(3, 8), X, engine=engine)
    keys = [*prepared.state_dict()]
    prepared(torch.randn(6, 3, 12, 12))
    sample = copy.deepcopy(prepared).sample
    assert sample is not None
    assert sample.args[0].shape == (4, 3, 12, 12)
    assert [*prepared.state_dict()] == keys
    assert quantized.convert(prepared).sample is None


class NaNForLargeValues(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * (100 - x.amax()).sqrt()


class AlwaysDrops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, training=True)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_random_models_are_named(engine: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    message = "must return the same result|draws random numbers|depends on more than its input"
    with pytest.raises((RuntimeError, TypeError), match=message):
        quantized.quantize(AlwaysDrops(), [x], engine=engine)
    with pytest.raises((RuntimeError, TypeError), match=message):
        quantized.prepare_qat(AlwaysDrops().train(), x, engine=engine)


def test_random_models_are_not_to_be_reported() -> None:
    """If the earlier comparisons let them through."""
    x = torch.randn(2, 3, 8, 8)
    prepared = quantized.prepare_qat(nn.Sequential(nn.Conv2d(3, 8, 3)), x)
    with pytest.raises(RuntimeError, match="must return the same result for the same input"):
        verification.check_prepared(prepared, AlwaysDrops(), Inputs((x,)))


def test_nan_for_a_later_batch_raises() -> None:
    with pytest.raises(ValueError, match="model must give finite outputs, it gives NaN"):
        quantized.quantize(NaNForLargeValues(), [X, 1000 * X], engine="pt2e")


class Zeroed(nn.Module):
    """A residual block whose last norm has gains of zero, as training begins, and a dead channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3), tnn.BasicBlock(8, 8), nn.Conv2d(8, 4, 1)
        nn.init.zeros_(self.block.get_parameter("bn2.weight"))
        with torch.no_grad():
            self.stem.weight[3].zero_()
            self.stem.get_parameter("bias")[3] = -2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(F.relu(self.stem(x))))


class Scaled(nn.Module):
    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.conv, self.head, self.scale, self.shift = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x))) * self.scale + self.shift


class MostlyZero(nn.Module):
    """Writes zeros into a view, then pools. The mean is far below the range."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, :, 1:] = 0
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ManyOutputs(nn.Module):
    """Indices, a mask, infinities, gates with fixed steps, and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv(x)
        masked = x.masked_fill(torch.arange(8).view(8, 1, 1) == 2, float("-inf"))
        out = {"index": x.argmax(1), "mask": x > 0.1, "gate": (x / 10 - 5).sigmoid(), "one": self.head(x.mean((2, 3)))}
        return {**out, "weights": masked.softmax(1)}


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class WithAnchors(TwoConvs):
    """Also returns what does not depend on the input."""

    anchors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", 100 * torch.randn(5, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(self.a(x)), self.anchors + 1


class KeepsFeatures(TwoConvs):
    """After a call with gradients, ``copy.deepcopy`` cannot copy it."""

    def __init__(self) -> None:
        super().__init__()
        self(X)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.a(x)
        return self.b(self.features)


def vanishing() -> nn.Module:
    """Activations that end below the smallest step, like those of deep models without training."""
    convs = [nn.Conv2d(3, 3, 3, bias=False) for _ in range(4)]
    for conv in convs:
        nn.init.normal_(conv.weight, std=1e-3)
    return nn.Sequential(*convs)


def clamped_twice() -> nn.Module:
    """The first clamp is part of the convolution and leaves a wide range."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Hardtanh(-1, 1))
    with torch.no_grad():
        model.get_parameter("0.weight")[0] *= 50
    return model


SOUND: dict[str, Callable[[], nn.Module]] = {
    "zero gains": Zeroed,
    "zeros": lambda: Scaled(0.0),
    "constant": lambda: Scaled(1e-6, 5.0),
    "anchors": WithAnchors,
    "features": KeepsFeatures,
    "huge": lambda: Scaled(1e6),
    "tiny": lambda: Scaled(1e-5),
    "vanishing": vanishing,
    "mostly zero": MostlyZero,
    "many outputs": ManyOutputs,
    "transformer": Transformer,
    # Clamps and pools keep the step of the input, and the mean is small.
    "clamped": lambda: nn.Sequential(nn.Hardtanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5, bias=False)),
    "norms": lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
    "clamped twice": clamped_twice,
    "saturated": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-1e-3, 1e-3), nn.Softmax(1)),
}


@pytest.mark.parametrize(("engine", "backend"), ENGINES)
@pytest.mark.parametrize("name", SOUND)
def test_sound_models_pass(name: str, engine: str, backend: str) -> None:
    torch.manual_seed(0)
    model = SOUND[name]().eval()
    quantized.quantize(model, [X], engine=engine, backend=backend, allow_float=True)


@pytest.mark.parametrize(("engine", "backend"), ENGINES)
@pytest.mark.filterwarnings("ignore:batches must hold typical inputs")
@pytest.mark.parametrize("inputs", ["one image", "zeros", "steps", "wide batch", "narrow batch"])
def test_inputs_do_not_matter(inputs: str, engine: str, backend: str) -> None:
    torch.manual_seed(0)
    batches = {
        "one image": [X[:1]],
        "zeros": [torch.zeros_like(X)],
        "steps": [(X > 0).float()],
        "wide batch": [X, 100 * X],
        "narrow batch": [X, X / 100],
    }[inputs]
    model = nn.Sequential(tnn.ConvNormAct(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)).eval()
    quantized.quantize(model, batches, engine=engine, backend=backend)


class Exponential(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(torch.exp(-x)))


@pytest.mark.parametrize(("engine", "backend"), ENGINES)
def test_ranges_of_all_batches_explain_the_error(engine: str, backend: str) -> None:
    """The batch with the largest values is not the one with the largest activations, which set the steps."""
    torch.manual_seed(0)
    batches = [X.abs() + 4, -X.abs()]
    quantized.quantize(Exponential().eval(), batches, engine=engine, backend=backend)


@torch.no_grad()
def test_a_norm_with_statistics_of_its_own_sets_the_step() -> None:
    """No layer computes it, so the ReLU after it keeps the step of negative values too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()).eval()
    norms, output = model[:2](X), rounded_outputs(model, Inputs((X,)))[0]
    step = output.unique().diff().median()  # most steps of so many values are taken
    assert 0.95 < 255 * step / (norms.max() - norms.min()) < 1.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_models_of_torchvision_pass_untrained(name: str, engine: str) -> None:
    """The activations of some vanish in the last layers."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    quantized.quantize(model, [torch.randn(2, 3, 32, 32)], engine=engine)
