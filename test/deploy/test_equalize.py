"""Cross-layer equalization: exact in float, equal ranges, and what it leaves alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing._checks._quantization import decibels


def uneven(model: nn.Module) -> nn.Module:
    """Gives weights channels of very different ranges, and norms random statistics."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            shape = [-1, *[1] * (module.weight.dim() - 1)]
            module.weight.data *= torch.exp(torch.randn(len(module.weight))).reshape(shape)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def relative_error(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
        return float((other(x) - expected).abs().max() / expected.abs().max())


class Residual(nn.Module):
    """A branch of three layers, a sum, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6())
        self.branch = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.last = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(self.branch(x))
        return self.head(x.mean((2, 3)))


IMAGE = (4, 3, 17, 19)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # model, input, and the number of layers whose weights change
    "relu": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)), IMAGE, 2),
    "relu6 depthwise": (lambda: tnn.InvertedResidual(3, 8, 2, 4), IMAGE, 3),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.LeakyReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
        IMAGE,
        3,
    ),
    "padding": (lambda: nn.Sequential(tnn.ConvNormAct(3, 8, conv_layer=tnn.Conv2dSame), nn.ZeroPad2d(1),
                                      tnn.ConvNormAct(8, 8, 3, 2, conv_layer=tnn.Conv2dSame)), IMAGE, 2),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 8, 2, 2), nn.PReLU(8), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Conv2d(6, 2, 1)
        ),
        IMAGE,
        3,
    ),
    "pooled and flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
        IMAGE,
        2,
    ),
    "linear": (lambda: tnn.MLP(6, [12, 8, 3]), (5, 6), 3),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.Hardtanh(0, 2), nn.Conv3d(4, 3, 1)), (2, 2, 5, 6, 7), 2),
    "residual": (Residual, IMAGE, 3),
    "silu": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3)), IMAGE, 0),
    "constant border": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConstantPad2d(1, 2.0), nn.Conv2d(8, 4, 3)), IMAGE, 0
    ),
    "negative cap": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(-1, 1), nn.Conv2d(8, 4, 3)), IMAGE, 0),
}  # fmt: skip


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]


@pytest.mark.parametrize("name", MODELS)
def test_results_stay_equal(name: str) -> None:
    make, shape, changed = MODELS[name]
    model, x = uneven(make()), torch.randn(shape)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for equalized in (deploy.equalize(model), deploy.equalize(model, x)):
        assert relative_error(model, equalized, x) <= 1e-5
        pairs = zip(layers(deploy.fold(model)), layers(equalized), strict=True)
        assert sum(not torch.allclose(a.weight, b.weight) for a, b in pairs) == changed
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_ranges_of_both_sides_are_equal() -> None:
    """The largest weight of each channel before and after it, which is where the scales of eq. 11 lead."""
    model = deploy.equalize(uneven(tnn.InvertedResidual(8, 8, 2, 4)))
    expand, depthwise, project = layers(model)
    torch.testing.assert_close(
        expand.weight.abs().amax((1, 2, 3)), depthwise.weight.abs().amax((1, 2, 3)), rtol=2e-3, atol=0
    )
    torch.testing.assert_close(
        depthwise.weight.abs().amax((1, 2, 3)), project.weight.abs().amax((0, 2, 3)), rtol=2e-3, atol=0
    )


def test_scales_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU6(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [-0.5]]))
        model[0].bias.copy_(torch.tensor([4.0, 1.0]))
        model[2].weight.copy_(torch.tensor([[2.0, 8.0]]))
    equalized = deploy.equalize(model)
    assert equalized[0].weight.flatten().tolist() == pytest.approx([4, -2])
    assert equalized[0].bias.tolist() == pytest.approx([2, 4])
    assert equalized[2].weight.flatten().tolist() == pytest.approx([4, 2])
    assert equalized[1][1].cap.tolist() == pytest.approx([3, 24])


def test_channels_without_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[2].weight[:, 1] = 0
    x = torch.randn(2, 3, 5, 5)
    equalized = deploy.equalize(model, x)
    assert relative_error(model, equalized, x) <= 1e-6
    assert torch.equal(equalized[0].bias[:2], model[0].bias[:2])


def test_layers_that_others_use_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.a(x))
            return F.relu(self.b(y)) + y.amax()

    class Twice(Shared):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.b(self.act(self.a(x))))

    for model in (uneven(Shared()), uneven(Twice())):
        x = torch.randn(2, 4, 6, 6)
        equalized = deploy.equalize(model, x)
        assert relative_error(model, equalized, x) <= 1e-6
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(model), layers(equalized), strict=True))


def test_forward_that_cannot_be_traced_needs_a_batch() -> None:
    class Untraced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() > -1e9 else x

    model, x = uneven(Untraced()), torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match=r"batch is required: the forward of model cannot .* deploy.equalize\(model"):
        deploy.equalize(model)
    assert relative_error(model, deploy.equalize(model, x), x) <= 1e-6
    with pytest.raises(TypeError, match="batch must be a tensor, or a tuple with the inputs of model, got list"):
        deploy.equalize(model, [x])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model is a QuantizableModel: fold the float model"):
        deploy.equalize(quantized.quantizable(tnn.ConvNormAct(3, 4)))


def network() -> tuple[nn.Module, Tensor]:
    """A small MobileNetV2 whose channels have very different ranges, as after training: norms are calibrated."""
    x = torch.randn(32, 3, 32, 32).cumsum(2).mul(0.2)  # smooth, like images
    model = nn.Sequential(
        tnn.ConvNormAct(3, 16, stride=2, activation_layer=nn.ReLU6),
        *(tnn.InvertedResidual(16, 16, stride, 4) for stride in (1, 2, 1)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    for module in model.modules():
        if isinstance(module, tnn.ConvNormAct):
            gains = torch.exp(1.5 * torch.randn(module.out_channels))
            module[1].weight.data, module[1].bias.data = gains, gains * torch.rand(module.out_channels)
            module[1].momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize(("engine", "backend"), [("eager", "onednn"), ("eager", "x86"), ("pt2e", "x86")])
def test_one_scale_per_weight_gains_ten_decibels(engine: str, backend: str) -> None:
    model, x = network()
    noise = {}
    for name, version in (("folded", deploy.fold(model)), ("equalized", deploy.equalize(model, x))):
        for per_channel in (True, False):
            int8 = quantized.quantize(version, [x], engine=engine, backend=backend, per_channel=per_channel)
            noise[name, per_channel] = decibels(model(x), int8(x))
    assert noise["equalized", False] > max(noise["folded", False] + 10, 22), noise
    assert noise["equalized", False] > noise["equalized", True] - 4, noise


@pytest.mark.parametrize(("engine", "backend"), [("eager", "onednn"), ("pt2e", "x86")])
def test_activations_count_with_a_batch(engine: str, backend: str) -> None:
    """Channels that come from their bias would get far larger activations than all others by their weights alone."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    with torch.no_grad():
        model[0].weight *= torch.tensor([1.0, 1e-3]).repeat(8)[:, None, None, None]
        model[0].bias.fill_(1.0)
    x = torch.randn(8, 3, 16, 16)
    noise = []
    for version in (deploy.equalize(model), deploy.equalize(model, x)):
        int8 = quantized.quantize(version, [x], engine=engine, backend=backend, per_channel=False)
        noise.append(decibels(model(x), int8(x)))
    assert noise[1] > max(noise[0] + 10, 28), noise


def test_caps_run_on_integers() -> None:
    model, x = network()
    int8 = quantized.quantize(deploy.equalize(model, x), [x])
    rows = [row for row in quantized.report(int8).rows if row.after == "ChannelCap"]
    assert len(rows) == 6
    assert {row.runs_in for row in rows} == {"int8"}


@pytest.mark.slow
def test_torchvision() -> None:
    model = uneven(torchvision.models.mobilenet_v2(weights=None))
    x = torch.randn(2, 3, 64, 64)
    deploy.equalize(model, x)  # compares the results
