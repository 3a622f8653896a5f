"""Cases of folded blocks. Each baseline calls the folded convolutions and the remaining operations as functions."""

from collections.abc import Callable, Sequence

import torchvision.models
from cases import Candidate, Candidates, Case, Formula, Target
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import efficientnet, resnet

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

__all__ = ["FOLDED_CASES"]

Call = Callable[[Tensor], Tensor]


def with_random_statistics(layer: nn.Module) -> nn.Module:
    """The layer in eval mode, with random running statistics."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return layer.eval()


def convs(folded: nn.Module) -> list[Call]:
    """The convolutions of a folded layer, as functions."""
    return [
        lambda x, c=module: F.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
        for module in folded.modules()
        if isinstance(module, nn.Conv2d)
    ]


def candidates(baseline: dict[str, Candidate], ours: nn.Module, theirs: nn.Module | None = None) -> Candidates:
    """The baseline, our layer folded and unfolded, and torchvision's layer unfolded and folded."""
    result = {**baseline, "ours": Candidate(deploy.fold(ours)), "ours, not folded": Candidate(ours)}
    if theirs is not None:
        theirs.load_state_dict(ours.state_dict())
        theirs.eval()
        result |= {"torchvision": Candidate(theirs), "torchvision, folded": Candidate(deploy.fold(theirs))}
    return {name: candidate._replace(trains=False) for name, candidate in result.items()}


def conv_norm_act(layer: type[tnn.ConvNormAct], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours = with_random_statistics(layer(channels, channels))
    folded = deploy.fold(ours)
    (conv,) = convs(folded)
    baseline = {"conv, relu_": Candidate(Formula(lambda x: conv(x).relu_(), folded))}
    return candidates(baseline, ours, torchvision.ops.Conv2dNormActivation(channels, channels))


def basic_block(layer: type[tnn.BasicBlock], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours = with_random_statistics(layer(channels, channels))
    folded = deploy.fold(ours)
    first, last = convs(folded)
    baseline = {"convs, relu_, add_": Candidate(Formula(lambda x: last(first(x).relu_()).add_(x).relu_(), folded))}
    return candidates(baseline, ours, resnet.BasicBlock(channels, channels))


def bottleneck(layer: type[tnn.Bottleneck], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours = with_random_statistics(layer(channels, channels // 4))
    folded = deploy.fold(ours)
    first, spatial, last = convs(folded)

    def formula(x: Tensor) -> Tensor:
        return last(spatial(first(x).relu_()).relu_()).add_(x).relu_()

    baseline = {"convs, relu_, add_": Candidate(Formula(formula, folded))}
    return candidates(baseline, ours, resnet.Bottleneck(channels, channels // 4))


def mb_conv(layer: type[tnn.MBConv], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours = with_random_statistics(layer(channels, channels))
    folded = deploy.fold(ours)
    first, spatial, _, _, last = convs(folded)
    baseline = {"three convs": Candidate(Formula(lambda x: last(spatial(first(x))), folded), is_equal=False)}
    config = efficientnet.MBConvConfig(6, 3, 1, channels, channels, 1)
    return candidates(baseline, ours, efficientnet.MBConv(config, 0.0, nn.BatchNorm2d))


def depthwise(layer: type[tnn.DepthwiseSeparableConv], shape: Sequence[int]) -> Candidates:
    ours = with_random_statistics(layer(shape[1], shape[1]))
    folded = deploy.fold(ours)
    first, last = convs(folded)
    return candidates({"two convs": Candidate(Formula(lambda x: last(first(x)), folded), is_equal=False)}, ours)


def coord_conv(layer: type[enn.CoordConv2d], shape: Sequence[int]) -> Candidates:
    ours, plain = (cls(shape[1], shape[1], 3, padding=1) for cls in (layer, nn.Conv2d))
    return candidates({"nn.Conv2d": Candidate(plain, is_equal=False)}, ours)


def conv_next(layer: type[tnn.ConvNeXtBlock], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1]).eval()
    nn.init.normal_(ours.layer_scale)
    folded = deploy.fold(ours)
    conv, first, last = (folded.block[i] for i in (0, 3, 5))

    def formula(x: Tensor) -> Tensor:
        return last(first(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    baseline = {"conv, two linears": Candidate(Formula(formula, folded), is_equal=False)}
    return candidates(baseline, ours, torchvision.models.convnext.CNBlock(shape[1], 1e-6, 0.0))


def rep_conv(layer: type[enn.RepConv], shape: Sequence[int]) -> Candidates:
    ours = with_random_statistics(layer(shape[1], shape[1]))
    folded = deploy.fold(ours)
    (conv,) = convs(folded)
    return candidates({"conv, relu_": Candidate(Formula(lambda x: conv(x).relu_(), folded))}, ours)


EARLY = (8, 64, 56, 56)

FOLDED_CASES = [
    Case(tnn.ConvNormAct, EARLY, conv_norm_act, Target(1.01)),
    Case(tnn.BasicBlock, EARLY, basic_block, Target(1.02)),
    Case(tnn.Bottleneck, (8, 256, 56, 56), bottleneck, Target(1.02)),
    Case(tnn.MBConv, (8, 40, 28, 28), mb_conv, Target(1.35)),
    Case(tnn.DepthwiseSeparableConv, EARLY, depthwise, Target(1.05)),
    Case(enn.CoordConv2d, EARLY, coord_conv, Target(1.02)),
    Case(enn.RepConv, EARLY, rep_conv, Target(1.02)),
    Case(tnn.ConvNeXtBlock, (8, 96, 28, 28), conv_next),
]
