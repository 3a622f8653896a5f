"""The reference models that torchvision lacks, compared with their papers."""

from math import pi, sqrt

import pytest
import torch
from models import build_model
from models.nf_resnet import NFBlock, NFResNet
from models.sasa_resnet import attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

from ._support.pairs import fill


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "width_mult", "millions"),
    [
        ("mobilenet_v1", 1.0, 4.2),  # table 8 of arXiv 1704.04861, as for the next three
        ("mobilenet_v1", 0.75, 2.6),
        ("mobilenet_v1", 0.5, 1.3),
        ("mobilenet_v1", 0.25, 0.5),
        ("resnet26_sasa", 1.0, 10.3),  # table 1 of arXiv 1906.05909
        ("mobilenet_v4_conv_small", 1.0, 3.8),  # table 5 of arXiv 2404.10518
        ("convnextv2_atto", 1.0, 3.7),  # table 12 of arXiv 2301.00808
        ("efficientnet_lite0", 1.0, 4.7),  # table in the README of the authors' code, as for the next four
        ("efficientnet_lite1", 1.0, 5.4),
        ("efficientnet_lite2", 1.0, 6.1),
        ("efficientnet_lite3", 1.0, 8.2),
        ("efficientnet_lite4", 1.0, 13.0),
        ("vit_tiny", 1.0, 5.7),  # table 1 of arXiv 2012.12877 rounds to 5; 5.7 in the README of the authors' code
    ],
)
def test_parameters(name: str, width_mult: float, millions: float) -> None:
    assert round(parameters(build_model(name, 1000, width_mult)) / 1e6, 1) == millions


def test_mobilenet_v1() -> None:
    """569 million multiply-adds as in table 8, and the sizes of table 1."""
    model, shapes = build_model("mobilenet_v1", 1000).eval(), []
    for layer in model.features:
        layer.register_forward_hook(lambda _layer, _inputs, output: shapes.append(tuple(output.shape[1:3])))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)
    assert round(counter.get_total_flops() / 2e6) == 569
    table = [(32, 112), (64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6, (1024, 7), (1024, 7)]
    assert shapes == table


@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    [
        ("repvgg_a0", 8.30, 1.4),  # table 4 of arXiv 2101.03697, folded
        ("mobileone_s0", 2.1, 0.275),  # table 4 of arXiv 2206.04040, folded
    ],
)
def test_folded_size(name: str, millions: float, billions: float) -> None:
    folded = deploy.fold(build_model(name, 1000).eval())
    assert parameters(folded) / 1e6 == pytest.approx(millions, rel=0.015)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        folded(torch.randn(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.03)


def test_mobilenet_v2_coord() -> None:
    """It differs only in the weights of two more channels of its first convolution."""
    plain, coord = (build_model(name, 10).state_dict() for name in ("mobilenet_v2", "mobilenet_v2_coord"))
    assert list(plain) == list(coord)
    differing = {key for key in plain if plain[key].shape != coord[key].shape}
    assert differing == {"features.0.0.weight"}
    assert plain["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert coord["features.0.0.weight"].shape == (32, 5, 3, 3)


def test_parameters_of_nf_resnet50() -> None:
    """It has the parameters of ResNet-50 without the scales of its norms, and one gain per block; the stem has no bias.

    These 25.53 million do not include the 26,560 gains of filters in the authors' code, which their equation lacks.
    """
    norms = [module for module in build_model("resnet50", 1000).modules() if isinstance(module, nn.BatchNorm2d)]
    scales = sum(norm.num_features for norm in norms)
    blocks = 3 + 4 + 6 + 3
    model = build_model("nf_resnet50", 1000)
    assert parameters(model) == parameters(build_model("resnet50", 1000)) - scales - 64 + blocks


def test_variance_of_nf_resnet() -> None:
    """The variance of each branch is one. That of the sum grows by alpha squared, and is reset by each stage."""
    torch.manual_seed(0)
    alpha, branches, outputs = 1.0, [], []  # five times that of the paper, so that a wrong beta shows
    model = NFResNet((3, 2, 4, 2), 10, alpha=alpha, stochastic_depth=0.0).eval()
    blocks = [module for module in model.modules() if isinstance(module, NFBlock)]
    for block in blocks:
        nn.init.ones_(block.skip_gain.gain)
        block.conv2.padding_mode = "circular"  # zero padding of small feature maps would reduce the variance
        block.conv3.register_forward_hook(lambda _layer, _inputs, output: branches.append(variance(output)))
        block.register_forward_hook(lambda _layer, _inputs, output: outputs.append(variance(output)))
    with torch.no_grad():
        model(torch.randn(4, 3, 96, 96))
    expected = [1 + alpha**2 * block for depth in (3, 2, 4, 2) for block in range(1, depth + 1)]
    torch.testing.assert_close(torch.tensor(branches), torch.ones(len(blocks)), rtol=0.15, atol=0)
    torch.testing.assert_close(torch.tensor(outputs), torch.tensor(expected), rtol=0.15, atol=0)


def variance(x: Tensor) -> float:
    """The variance over batch and pixels, as a mean of all channels."""
    return float(x.var(dim=(0, 2, 3)).mean())


def test_untrained_nf_block_is_its_skip() -> None:
    block, x = NFBlock(16, 4, stride=1, beta=1.2, alpha=0.2, stochastic_depth=0.0), torch.randn(2, 16, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("stride", [1, 2])
def test_nf_block_equals_the_equation(stride: int) -> None:
    alpha, beta = 0.3, 1.7
    block = fill(NFBlock(8 if stride == 2 else 16, 4, stride, beta, alpha, stochastic_depth=0.0)).double().eval()
    x = torch.randn(2, 8 if stride == 2 else 16, 7, 6, dtype=torch.float64)

    def convolution(name: str, input: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        layer = getattr(block, name)
        mean = layer.weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = layer.weight.var(dim=(1, 2, 3), unbiased=False, keepdim=True).sqrt()
        weight = (layer.weight - mean) / (deviation * sqrt(layer.weight[0].numel()))
        return F.conv2d(input, sqrt(2 / (1 - 1 / pi)) * weight, layer.bias, stride, padding)

    active = F.relu(x / beta)
    branch = F.relu(convolution("conv1", active))
    branch = F.relu(convolution("conv2", branch, stride, padding=1))
    branch = convolution("conv3", branch)
    skip = x if stride == 1 else convolution("projection", active, stride)
    expected = skip + alpha * block.skip_gain.gain * branch
    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("stride", "size"), [(1, (9, 6)), (2, (9, 6)), (2, (8, 10))])
def test_attention_block_equals_the_equation(stride: int, size: tuple[int, int]) -> None:
    planes = 16
    block = fill(tnn.Bottleneck(24, planes, stride, conv_layer=attention)).double().eval()
    x = torch.randn(2, 24, *size, dtype=torch.float64)
    layer = block.conv2 if stride == 1 else block.conv2[0]

    hidden = F.relu(norm(block.bn1, F.conv2d(x, block.conv1.weight)))
    query, key, value = (F.conv2d(hidden, getattr(layer, name).weight) for name in ("query", "key", "value"))
    attended = spatial_attention(query, key, value, layer.row_embedding, layer.column_embedding, heads=8, side=7)
    if stride == 2:
        attended = F.avg_pool2d(attended, 2, ceil_mode=True)
    branch = norm(block.bn3, F.conv2d(F.relu(norm(block.bn2, attended)), block.conv3.weight))
    skip = norm(block.downsample[1], F.conv2d(x, block.downsample[0].weight, stride=stride))
    torch.testing.assert_close(block(x), F.relu(branch + skip))


def spatial_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, heads: int, side: int
) -> Tensor:
    """Equation 3, pixel by pixel and head by head."""
    _, channels, height, width = query.shape
    output, half, head_channels = torch.zeros_like(query), side // 2, channels // heads
    for i in range(height):
        for j in range(width):
            neighbours = [
                (a, b)
                for a in range(max(0, i - half), min(height, i + half + 1))
                for b in range(max(0, j - half), min(width, j + half + 1))
            ]
            for head in range(heads):
                part = slice(head * head_channels, (head + 1) * head_channels)
                q = query[:, part, i, j]
                offset = [
                    torch.cat([rows[head, :, a - i + half], columns[head, :, b - j + half]]) for a, b in neighbours
                ]
                logits = [(q * (key[:, part, a, b] + r)).sum(1) for (a, b), r in zip(neighbours, offset, strict=True)]
                shares = torch.stack(logits, 1).softmax(1)
                values = torch.stack([value[:, part, a, b] for a, b in neighbours], 1)
                output[:, part, i, j] = (shares[:, :, None] * values).sum(1)
    return output


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
