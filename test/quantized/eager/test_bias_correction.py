"""Biases make up for what rounding the weights adds to the mean of each channel."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(input=x)


def bright(*shape: int) -> Tensor:
    """Inputs far from zero, in which errors of the weights do not cancel."""
    return 3 + torch.rand(*shape)


def nearly_equal_weights(model: nn.Module) -> nn.Module:
    """One large weight a channel, and others that all round the same way: 0.4 steps up or down."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.fill_(0.4 / 64)
                module.weight[:, 0] = 1.0
    return model.eval()


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(64, 16, 1)), (64, 5, 5)),
        (nn.Sequential(nn.Conv2d(64, 16, 3, padding=1, bias=False)), (64, 5, 5)),
        (nn.Sequential(nn.Conv2d(64, 16, 1), nn.ReLU()), (64, 5, 5)),
        (nn.Sequential(nn.Linear(64, 16), nn.ReLU6()), (64,)),
        (nn.Sequential(nn.Linear(64, 16, bias=False)), (7, 64)),
        (ByKeyword(), (64, 5, 5)),
    ],
    ids=["conv", "without_bias", "with_relu", "linear", "sequence", "by_keyword"],
)
def test_means_of_channels(model: nn.Module, shape: tuple[int, ...], backend: str) -> None:
    batches = [bright(1, *shape), bright(7, *shape)]  # of which the first must not count as much as the second
    inputs = torch.cat(batches)
    with torch.no_grad():
        expected = nearly_equal_weights(model)(inputs)
        outputs = quantized.quantize(model, batches, backend=backend)(inputs)
    axes = [axis for axis in range(expected.dim()) if axis != (1 if len(shape) == 3 else expected.dim() - 1)]
    off = (outputs.mean(axes) - expected.mean(axes)).abs() / expected.abs().amax(axes)
    # Rounded weights alone would be off by some percent; what is left is the rounding of single outputs.
    assert float(off.max()) < 4e-3


def test_two_modules_that_share_a_bias() -> None:
    """Each place has inputs of its own, so it has a correction of its own; the float model is not touched."""
    model = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1))
    model[2].bias = model[0].bias
    nearly_equal_weights(model)
    before = model[0].bias.clone()
    input = bright(4, 64, 5, 5)
    int8 = quantized.quantize(model, [input])
    assert torch.equal(model[0].bias, before)
    assert model[2].bias is model[0].bias
    with torch.no_grad():
        expected = model(input)
    off = (int8(input).mean((0, 2, 3)) - expected.mean((0, 2, 3))).abs() / expected.abs().amax((0, 2, 3))
    assert float(off.max()) < 8e-3


def test_training_needs_none() -> None:
    """Quantization-aware training learns its biases with rounded weights."""
    model = nearly_equal_weights(nn.Sequential(nn.Conv2d(64, 16, 1)))
    prepared = quantized.prepare_qat(model)
    prepared(bright(4, 64, 5, 5))
    _, bias = quantized.convert(prepared).model[0]._weight_bias()
    assert torch.equal(bias, model[0].bias)
