"""Checkpoints of whole torchvision models load into our layers and give the same outputs, bit for bit.

Each model is built twice: by torchvision, and with every block replaced by our layers. Both run the same operations in
the same order, so the comparisons need no tolerance.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models, ops
from torchvision.models import convnext, efficientnet, mobilenetv2, mobilenetv3, resnet

from torchvision_layers import nn as tnn

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "resnet50 dilated": partial(models.resnet50, replace_stride_with_dilation=[False, True, True]),
    "resnext50_32x4d": models.resnext50_32x4d,
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "mobilenet_v3_large dilated": partial(models.mobilenet_v3_large, dilated=True),
    "efficientnet_b0": models.efficientnet_b0,
    "efficientnet_b0 without stochastic depth": partial(models.efficientnet_b0, stochastic_depth_prob=0.0),
    "convnext_tiny": models.convnext_tiny,
}

assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


def norm_of(norm: nn.Module) -> Callable[[int], nn.Module]:
    """A constructor of our norm that corresponds to torchvision's ``norm``."""
    if isinstance(norm, nn.BatchNorm2d):
        return partial(nn.BatchNorm2d, eps=norm.eps, momentum=norm.momentum)
    assert isinstance(norm, convnext.LayerNorm2d)
    return partial(tnn.LayerNorm2d, eps=norm.eps)


def conv_norm_act(theirs: ops.Conv2dNormActivation) -> tnn.ConvNormAct:
    conv, norm, *activation = theirs
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    activation_layer = type(activation[0]) if activation else None
    with_bias = conv.bias is not None
    return tnn.ConvNormAct(
        conv.in_channels, conv.out_channels, *sizes, norm_of(norm), activation_layer, conv.dilation, bias=with_bias
    )


def basic_block(theirs: resnet.BasicBlock) -> tnn.BasicBlock:
    """Our blocks build the skip connection themselves, here and below."""
    return tnn.BasicBlock(
        theirs.conv1.in_channels, theirs.conv2.out_channels, theirs.conv1.stride[0], norm_layer=norm_of(theirs.bn1)
    )


def bottleneck(theirs: resnet.Bottleneck) -> tnn.Bottleneck:
    conv = theirs.conv2
    planes = theirs.conv3.out_channels // tnn.Bottleneck.expansion
    return tnn.Bottleneck(
        theirs.conv1.in_channels,
        planes,
        conv.stride[0],
        groups=conv.groups,
        base_width=64 * conv.out_channels // (conv.groups * planes),
        dilation=conv.dilation[0],
        norm_layer=norm_of(theirs.bn1),
    )


def inverted(theirs: nn.Module) -> tuple[int, int, dict[str, Any]]:
    """Channels of an inverted residual block, and the arguments that all our blocks of this kind share."""
    convs = [module for module in theirs.modules() if isinstance(module, nn.Conv2d)]
    depthwise = next(conv for conv in convs if conv.groups > 1)
    _, norm, activation = next(module for module in theirs.modules() if isinstance(module, ops.Conv2dNormActivation))
    return (
        convs[0].in_channels,
        convs[-1].out_channels,
        {
            "kernel_size": depthwise.kernel_size[0],
            "stride": depthwise.stride[0],
            "expand_ratio": depthwise.in_channels / convs[0].in_channels,
            "norm_layer": norm_of(norm),
            "activation_layer": type(activation),
        },
    )


def inverted_residual(theirs: mobilenetv2.InvertedResidual | mobilenetv3.InvertedResidual) -> tnn.InvertedResidual:
    inp, oup, arguments = inverted(theirs)
    for module in theirs.modules():
        if isinstance(module, ops.SqueezeExcitation):
            arguments["se_layer"] = partial(
                tnn.SqueezeExcitation,
                squeeze_channels=module.fc1.out_channels,
                activation=type(module.activation),
                scale_activation=type(module.scale_activation),
            )
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            arguments["dilation"] = module.dilation[0]
    return tnn.InvertedResidual(inp, oup, **arguments)


def mbconv(theirs: efficientnet.MBConv) -> tnn.MBConv:
    """Our block builds the channel attention itself; its default is that of EfficientNet."""
    in_channels, out_channels, arguments = inverted(theirs)
    return tnn.MBConv(in_channels, out_channels, stochastic_depth=theirs.stochastic_depth.p, **arguments)


def convnext_block(theirs: convnext.CNBlock) -> tnn.ConvNeXtBlock:
    conv, _, norm, expansion, activation, _, _ = theirs.block
    return tnn.ConvNeXtBlock(
        conv.in_channels,
        kernel_size=conv.kernel_size[0],
        expansion=expansion.out_features // expansion.in_features,
        layer_scale=1.0,  # the checkpoint overwrites it
        stochastic_depth=theirs.stochastic_depth.p,
        norm_layer=partial(nn.LayerNorm, eps=norm.eps),
        activation_layer=type(activation),
    )


OURS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    ops.Conv2dNormActivation: conv_norm_act,
    resnet.BasicBlock: basic_block,
    resnet.Bottleneck: bottleneck,
    mobilenetv2.InvertedResidual: inverted_residual,
    mobilenetv3.InvertedResidual: inverted_residual,
    efficientnet.MBConv: mbconv,
    convnext.CNBlock: convnext_block,
    convnext.LayerNorm2d: lambda theirs: tnn.LayerNorm2d(theirs.normalized_shape[0], eps=theirs.eps),
}


def rebuild(model: nn.Module) -> nn.Module:
    """Replaces torchvision's blocks by our layers, in place, from their numbers alone."""
    for name, child in model.named_children():
        setattr(model, name, OURS[type(child)](child) if type(child) in OURS else rebuild(child))
    return model


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Our version of a model with the checkpoint of torchvision's loaded, and torchvision's."""
    with torch.device("meta"):  # the values are drawn below
        theirs, ours = MODELS[name](), rebuild(MODELS[name]())
    theirs, ours = (model.to_empty(device="cpu") for model in (theirs, ours))
    # These values differ from the defaults of constructors, and keep the magnitude of activations.
    for key, value in theirs.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(7)
        elif key.endswith(("bias", "running_mean")):
            value.uniform_(-0.3, 0.3)
        elif value.dim() == 1 or key.endswith("layer_scale"):
            value.uniform_(0.7, 1.3)
        else:
            nn.init.kaiming_normal_(value)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_loads_and_predicts_the_same(name: str) -> None:
    ours, theirs = (model.eval() for model in pair(name))
    of_torchvision = [type(module) for module in ours.modules() if type(module).__module__.startswith("torchvision.")]
    assert of_torchvision == [type(theirs)]  # only the model around the blocks

    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        assert (expected[0] - expected[1]).abs().mean() > 1e-3 * expected.std()  # the outputs depend on the images
        assert_same(ours(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_the_same(name: str) -> None:
    """With one seed, dropout and stochastic depth draw the same numbers."""
    x = torch.randn(4, 3, 64, 64)
    ours, theirs = (model.train() for model in pair(name))
    results = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        output = model(x)
        output.square().mean().backward()
        # The order of gradients matters to optimizer checkpoints; the running statistics depend on the momentum.
        results.append([output, *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    assert_same(*results)


@pytest.mark.parametrize("name", [name for name in MODELS if "mobilenet_v3" not in name])
def test_our_checkpoint_loads_into_torchvision(name: str) -> None:
    ours, theirs = pair(name)
    saved = {key: value.clone() for key, value in theirs.state_dict().items()}
    for value in theirs.state_dict().values():
        value.zero_()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same(theirs.state_dict(), saved)


def test_our_checkpoint_of_mobilenet_v3_does_not_load_into_torchvision() -> None:
    """Our block reads the keys ``block.*`` of torchvision and writes its own, ``conv.*``."""
    ours, theirs = pair("mobilenet_v3_small")
    with pytest.raises(RuntimeError, match=r"Missing key.*features\.1\.block\.0\.0\.weight"):
        theirs.load_state_dict(ours.state_dict(), strict=True)
