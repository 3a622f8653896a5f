"""The ``repr``, keys and shapes of each layer.

``EXPECTTEST_ACCEPT=1`` updates the expected texts. Changed keys break the checkpoints of every user.
"""

from functools import partial

import torch
from expecttest import assert_expected_inline
from torch import nn

from torchvision_layers import nn as tnn


def keys(layer: nn.Module) -> str:
    return "\n".join(f"{key} {tuple(value.shape)}" for key, value in layer.state_dict().items())


def described(layer: nn.Module) -> str:
    """``repr`` and keys, without an argument of norms that only newer releases of torch print."""
    return f"{layer}\n{keys(layer)}".rstrip().replace("affine=True, bias=True", "affine=True")


GOLDEN = {}


def golden(cls: type[nn.Module]):
    """Records that a layer has a description here."""

    def record(test):
        GOLDEN[cls.__name__] = test
        return test

    return record


def test_every_public_layer_is_described() -> None:
    assert set(GOLDEN) >= {name for name in tnn.__all__ if isinstance(getattr(tnn, name), type)}


@golden(tnn.WSConv2d)
def test_ws_conv2d() -> None:
    assert_expected_inline(
        described(tnn.WSConv2d(4, 8, 3, padding=1)),
        """\
WSConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), eps=1e-10)
weight (8, 4, 3, 3)
bias (8,)""",
    )


@golden(tnn.SWSConv2d)
def test_sws_conv2d() -> None:
    assert_expected_inline(
        described(tnn.SWSConv2d(4, 8, (3, 1), bias=False)),
        """\
SWSConv2d(4, 8, kernel_size=(3, 1), stride=(1, 1), bias=False, eps=1e-10, gamma=1.7129)
weight (8, 4, 3, 1)""",
    )


@golden(tnn.ConvNormAct)
def test_conv_norm_act() -> None:
    assert_expected_inline(
        described(tnn.ConvNormAct(3, 8)),
        """\
ConvNormAct(
  (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
  (1): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (2): ReLU(inplace=True)
)
0.weight (8, 3, 3, 3)
1.weight (8,)
1.bias (8,)
1.running_mean (8,)
1.running_var (8,)
1.num_batches_tracked ()""",
    )


@golden(tnn.Conv2dSame)
def test_conv2d_same() -> None:
    assert_expected_inline(
        described(tnn.Conv2dSame(3, 8, 3, stride=2)),
        """\
Conv2dSame(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=same)
weight (8, 3, 3, 3)
bias (8,)""",
    )


@golden(tnn.Conv1dNormAct)
def test_conv1d_norm_act() -> None:
    assert_expected_inline(
        described(tnn.Conv1dNormAct(3, 8)),
        """\
Conv1dNormAct(
  (0): Conv1d(3, 8, kernel_size=(3,), stride=(1,), padding=(1,), bias=False)
  (1): BatchNorm1d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (2): ReLU(inplace=True)
)
0.weight (8, 3, 3)
1.weight (8,)
1.bias (8,)
1.running_mean (8,)
1.running_var (8,)
1.num_batches_tracked ()""",
    )


@golden(tnn.Conv3dNormAct)
def test_conv3d_norm_act() -> None:
    assert_expected_inline(
        described(tnn.Conv3dNormAct(3, 8, norm_layer=None)),
        """\
Conv3dNormAct(
  (0): Conv3d(3, 8, kernel_size=(3, 3, 3), stride=(1, 1, 1), padding=(1, 1, 1))
  (1): ReLU(inplace=True)
)
0.weight (8, 3, 3, 3, 3)
0.bias (8,)""",
    )


@golden(tnn.LinearDropoutAct)
def test_linear_dropout_act() -> None:
    assert_expected_inline(
        described(tnn.LinearDropoutAct(4, 2, norm_layer=nn.BatchNorm1d)),
        """\
LinearDropoutAct(
  (linear): Linear(in_features=4, out_features=2, bias=True)
  (norm): BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (dropout): Dropout(p=0.0, inplace=False)
  (activation): ReLU()
)
linear.weight (2, 4)
linear.bias (2,)
norm.weight (2,)
norm.bias (2,)
norm.running_mean (2,)
norm.running_var (2,)
norm.num_batches_tracked ()""",
    )


@golden(tnn.SqueezeExcitation)
def test_squeeze_excitation() -> None:
    assert_expected_inline(
        described(tnn.SqueezeExcitation(8, 2)),
        """\
SqueezeExcitation(
  (avgpool): GlobalAvgPool2d(output_size=1)
  (fc1): Conv2d(8, 2, kernel_size=(1, 1), stride=(1, 1))
  (fc2): Conv2d(2, 8, kernel_size=(1, 1), stride=(1, 1))
  (activation): ReLU()
  (scale_activation): Sigmoid()
)
fc1.weight (2, 8, 1, 1)
fc1.bias (2,)
fc2.weight (8, 2, 1, 1)
fc2.bias (8,)""",
    )


@golden(tnn.StochasticDepth)
def test_stochastic_depth() -> None:
    assert_expected_inline(described(tnn.StochasticDepth(0.2, "row")), """StochasticDepth(p=0.2, mode=row)""")


@golden(tnn.BasicBlock)
def test_basic_block() -> None:
    assert_expected_inline(
        described(tnn.BasicBlock(8, 16, stride=2, stochastic_depth=0.1)),
        """\
BasicBlock(
  (conv1): Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
  (bn1): BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (act1): ReLU(inplace=True)
  (conv2): Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
  (bn2): BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (stochastic_depth): StochasticDepth(p=0.1, mode=row)
  (downsample): Sequential(
    (0): Conv2d(8, 16, kernel_size=(1, 1), stride=(2, 2), bias=False)
    (1): BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  )
  (act): ReLU(inplace=True)
)
conv1.weight (16, 8, 3, 3)
bn1.weight (16,)
bn1.bias (16,)
bn1.running_mean (16,)
bn1.running_var (16,)
bn1.num_batches_tracked ()
conv2.weight (16, 16, 3, 3)
bn2.weight (16,)
bn2.bias (16,)
bn2.running_mean (16,)
bn2.running_var (16,)
bn2.num_batches_tracked ()
downsample.0.weight (16, 8, 1, 1)
downsample.1.weight (16,)
downsample.1.bias (16,)
downsample.1.running_mean (16,)
downsample.1.running_var (16,)
downsample.1.num_batches_tracked ()""",
    )


@golden(tnn.Bottleneck)
def test_bottleneck() -> None:
    se_layer = partial(tnn.SqueezeExcitation, squeeze_channels=2)
    assert_expected_inline(
        described(tnn.Bottleneck(16, 4, se_layer=se_layer)),
        """\
Bottleneck(
  (conv1): Conv2d(16, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)
  (bn1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (act1): ReLU(inplace=True)
  (conv2): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
  (bn2): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (act2): ReLU(inplace=True)
  (conv3): Conv2d(4, 16, kernel_size=(1, 1), stride=(1, 1), bias=False)
  (bn3): BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (se): SqueezeExcitation(
    (avgpool): GlobalAvgPool2d(output_size=1)
    (fc1): Conv2d(16, 2, kernel_size=(1, 1), stride=(1, 1))
    (fc2): Conv2d(2, 16, kernel_size=(1, 1), stride=(1, 1))
    (activation): ReLU()
    (scale_activation): Sigmoid()
  )
  (act): ReLU(inplace=True)
)
conv1.weight (4, 16, 1, 1)
bn1.weight (4,)
bn1.bias (4,)
bn1.running_mean (4,)
bn1.running_var (4,)
bn1.num_batches_tracked ()
conv2.weight (4, 4, 3, 3)
bn2.weight (4,)
bn2.bias (4,)
bn2.running_mean (4,)
bn2.running_var (4,)
bn2.num_batches_tracked ()
conv3.weight (16, 4, 1, 1)
bn3.weight (16,)
bn3.bias (16,)
bn3.running_mean (16,)
bn3.running_var (16,)
bn3.num_batches_tracked ()
se.fc1.weight (2, 16, 1, 1)
se.fc1.bias (2,)
se.fc2.weight (16, 2, 1, 1)
se.fc2.bias (16,)""",
    )


@golden(tnn.InvertedResidual)
def test_inverted_residual() -> None:
    assert_expected_inline(
        described(tnn.InvertedResidual(8, 8, 1, 6)),
        """\
InvertedResidual(
  (conv): Sequential(
    (0): ConvNormAct(
      (0): Conv2d(8, 48, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): BatchNorm2d(48, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (2): ReLU6(inplace=True)
    )
    (1): ConvNormAct(
      (0): Conv2d(48, 48, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=48, bias=False)
      (1): BatchNorm2d(48, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (2): ReLU6(inplace=True)
    )
    (2): Conv2d(48, 8, kernel_size=(1, 1), stride=(1, 1), bias=False)
    (3): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  )
)
conv.0.0.weight (48, 8, 1, 1)
conv.0.1.weight (48,)
conv.0.1.bias (48,)
conv.0.1.running_mean (48,)
conv.0.1.running_var (48,)
conv.0.1.num_batches_tracked ()
conv.1.0.weight (48, 1, 3, 3)
conv.1.1.weight (48,)
conv.1.1.bias (48,)
conv.1.1.running_mean (48,)
conv.1.1.running_var (48,)
conv.1.1.num_batches_tracked ()
conv.2.weight (8, 48, 1, 1)
conv.3.weight (8,)
conv.3.bias (8,)
conv.3.running_mean (8,)
conv.3.running_var (8,)
conv.3.num_batches_tracked ()""",
    )


@golden(tnn.FrozenBatchNorm2d)
def test_frozen_batch_norm_2d() -> None:
    assert_expected_inline(
        described(tnn.FrozenBatchNorm2d(8)),
        """\
FrozenBatchNorm2d(8, eps=1e-05)
weight (8,)
bias (8,)
running_mean (8,)
running_var (8,)""",
    )


@golden(tnn.LayerNorm2d)
def test_layer_norm_2d() -> None:
    assert_expected_inline(
        keys(tnn.LayerNorm2d(8)),
        """\
weight (8,)
bias (8,)""",
    )


@golden(tnn.LayerScale)
def test_layer_scale() -> None:
    assert_expected_inline(
        described(tnn.LayerScale(8)),
        """\
LayerScale(8, channels_dim=1)
weight (8,)""",
    )


@golden(tnn.Permute)
def test_permute() -> None:
    assert_expected_inline(described(tnn.Permute([0, 2, 1])), """Permute()""")


@golden(tnn.MLP)
def test_mlp() -> None:
    assert_expected_inline(
        described(tnn.MLP(8, [16, 4], dropout=0.1)),
        """\
MLP(
  (0): Linear(in_features=8, out_features=16, bias=True)
  (1): ReLU()
  (2): Dropout(p=0.1, inplace=False)
  (3): Linear(in_features=16, out_features=4, bias=True)
  (4): Dropout(p=0.1, inplace=False)
)
0.weight (16, 8)
0.bias (16,)
3.weight (4, 16)
3.bias (4,)""",
    )


@golden(tnn.DepthwiseSeparableConv)
def test_depthwise_separable_conv() -> None:
    assert_expected_inline(
        keys(tnn.DepthwiseSeparableConv(8, 16)),
        """\
depthwise.0.weight (8, 1, 3, 3)
depthwise.1.weight (8,)
depthwise.1.bias (8,)
depthwise.1.running_mean (8,)
depthwise.1.running_var (8,)
depthwise.1.num_batches_tracked ()
pointwise.0.weight (16, 8, 1, 1)
pointwise.1.weight (16,)
pointwise.1.bias (16,)
pointwise.1.running_mean (16,)
pointwise.1.running_var (16,)
pointwise.1.num_batches_tracked ()""",
    )


@golden(tnn.MBConv)
def test_mbconv() -> None:
    assert_expected_inline(
        keys(tnn.MBConv(8, 16)),
        """\
block.0.0.weight (48, 8, 1, 1)
block.0.1.weight (48,)
block.0.1.bias (48,)
block.0.1.running_mean (48,)
block.0.1.running_var (48,)
block.0.1.num_batches_tracked ()
block.1.0.weight (48, 1, 3, 3)
block.1.1.weight (48,)
block.1.1.bias (48,)
block.1.1.running_mean (48,)
block.1.1.running_var (48,)
block.1.1.num_batches_tracked ()
block.2.fc1.weight (2, 48, 1, 1)
block.2.fc1.bias (2,)
block.2.fc2.weight (48, 2, 1, 1)
block.2.fc2.bias (48,)
block.3.0.weight (16, 48, 1, 1)
block.3.1.weight (16,)
block.3.1.bias (16,)
block.3.1.running_mean (16,)
block.3.1.running_var (16,)
block.3.1.num_batches_tracked ()""",
    )


@golden(tnn.FusedMBConv)
def test_fused_mbconv() -> None:
    assert_expected_inline(
        keys(tnn.FusedMBConv(8, 16)),
        """\
block.0.0.weight (32, 8, 3, 3)
block.0.1.weight (32,)
block.0.1.bias (32,)
block.0.1.running_mean (32,)
block.0.1.running_var (32,)
block.0.1.num_batches_tracked ()
block.1.0.weight (16, 32, 1, 1)
block.1.1.weight (16,)
block.1.1.bias (16,)
block.1.1.running_mean (16,)
block.1.1.running_var (16,)
block.1.1.num_batches_tracked ()""",
    )


@golden(tnn.ConvNeXtBlock)
def test_convnext_block() -> None:
    assert_expected_inline(
        described(tnn.ConvNeXtBlock(8)),
        """\
ConvNeXtBlock(
  (block): Sequential(
    (0): Conv2d(8, 8, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3), groups=8)
    (1): Permute()
    (2): LayerNorm((8,), eps=1e-06, elementwise_affine=True)
    (3): Linear(in_features=8, out_features=32, bias=True)
    (4): GELU(approximate='none')
    (5): Linear(in_features=32, out_features=8, bias=True)
    (6): Permute()
  )
)
layer_scale (8, 1, 1)
block.0.weight (8, 1, 7, 7)
block.0.bias (8,)
block.2.weight (8,)
block.2.bias (8,)
block.3.weight (32, 8)
block.3.bias (32,)
block.5.weight (8, 32)
block.5.bias (8,)""",
    )


@golden(tnn.LazyConvNormAct)
def test_lazy_conv_norm_act() -> None:
    layer = tnn.LazyConvNormAct(8, groups=2)
    lazy = "\n".join([str(layer), *layer.state_dict()]).replace("affine=True, bias=True", "affine=True")
    assert_expected_inline(
        lazy,
        """\
LazyConvNormAct(
  (0): LazyConv2d(0, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2, bias=False)
  (1): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (2): ReLU(inplace=True)
)
0.weight
1.weight
1.bias
1.running_mean
1.running_var
1.num_batches_tracked""",
    )
    layer(torch.zeros(1, 4, 5, 6))
    assert described(layer) == described(tnn.ConvNormAct(4, 8, groups=2))


@golden(tnn.LazySqueezeExcitation)
def test_lazy_squeeze_excitation() -> None:
    layer = tnn.LazySqueezeExcitation(2)
    assert_expected_inline(
        "\n".join([str(layer), *layer.state_dict()]),
        """\
LazySqueezeExcitation(
  (avgpool): GlobalAvgPool2d(output_size=1)
  (fc1): LazyConv2d(0, 2, kernel_size=(1, 1), stride=(1, 1))
  (fc2): LazyConv2d(0, 0, kernel_size=(1, 1), stride=(1, 1))
  (activation): ReLU()
  (scale_activation): Sigmoid()
)
fc1.weight
fc1.bias
fc2.weight
fc2.bias""",
    )
    layer(torch.zeros(1, 8, 5, 6))
    assert described(layer) == described(tnn.SqueezeExcitation(8, 2))


@golden(tnn.GlobalResponseNorm)
def test_global_response_norm() -> None:
    assert_expected_inline(
        described(tnn.GlobalResponseNorm(8)),
        """\
GlobalResponseNorm(8, eps=1e-06, channels_dim=-1)
weight (8,)
bias (8,)""",
    )


@golden(tnn.UniversalInvertedBottleneck)
def test_universal_inverted_bottleneck() -> None:
    assert_expected_inline(
        described(tnn.UniversalInvertedBottleneck(4, 4, 3, 5, expand_ratio=2, layer_scale=1e-5)),
        """\
UniversalInvertedBottleneck(
  (block): Sequential(
    (start): ConvNormAct(
      (0): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=4, bias=False)
      (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    )
    (expand): ConvNormAct(
      (0): Conv2d(4, 8, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (2): ReLU(inplace=True)
    )
    (middle): ConvNormAct(
      (0): Conv2d(8, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=8, bias=False)
      (1): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (2): ReLU(inplace=True)
    )
    (project): ConvNormAct(
      (0): Conv2d(8, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    )
    (scale): LayerScale(4, channels_dim=1)
  )
)
block.start.0.weight (4, 1, 3, 3)
block.start.1.weight (4,)
block.start.1.bias (4,)
block.start.1.running_mean (4,)
block.start.1.running_var (4,)
block.start.1.num_batches_tracked ()
block.expand.0.weight (8, 4, 1, 1)
block.expand.1.weight (8,)
block.expand.1.bias (8,)
block.expand.1.running_mean (8,)
block.expand.1.running_var (8,)
block.expand.1.num_batches_tracked ()
block.middle.0.weight (8, 1, 5, 5)
block.middle.1.weight (8,)
block.middle.1.bias (8,)
block.middle.1.running_mean (8,)
block.middle.1.running_var (8,)
block.middle.1.num_batches_tracked ()
block.project.0.weight (4, 8, 1, 1)
block.project.1.weight (4,)
block.project.1.bias (4,)
block.project.1.running_mean (4,)
block.project.1.running_var (4,)
block.project.1.num_batches_tracked ()
block.scale.weight (4,)""",
    )
