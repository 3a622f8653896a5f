"""The ``repr``, keys and shapes of each experimental layer."""

from functools import partial

from expecttest import assert_expected_inline
from torch import nn

from torchvision_layers.experimental import nn as enn

from ..conformance.specs import SPECS
from ..layers.test_repr_and_keys import GOLDEN, described, golden


def test_every_experimental_layer_is_described() -> None:
    assert set(GOLDEN) >= {spec.name for spec in SPECS if spec.status == "experimental"}


@golden(enn.WSConv2d)
def test_ws_conv2d() -> None:
    assert_expected_inline(
        described(enn.WSConv2d(4, 8, 3, padding=1)),
        """\
WSConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), eps=1e-10)
weight (8, 4, 3, 3)
bias (8,)""",
    )


@golden(enn.SWSConv2d)
def test_sws_conv2d() -> None:
    assert_expected_inline(
        described(enn.SWSConv2d(4, 8, (3, 1), bias=False)),
        """\
SWSConv2d(4, 8, kernel_size=(3, 1), stride=(1, 1), bias=False, eps=1e-10, gamma=1.7129)
weight (8, 4, 3, 1)""",
    )


@golden(enn.CoordConv2d)
def test_coord_conv2d() -> None:
    assert_expected_inline(
        described(enn.CoordConv2d(4, 8, 3, groups=2, with_r=True)),
        """\
CoordConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), groups=2, with_r=True)
weight (8, 5, 3, 3)
bias (8,)""",
    )


@golden(enn.MultiHeadedSpatialAttention)
def test_multi_headed_spatial_attention() -> None:
    layer = enn.MultiHeadedSpatialAttention(4, 8, 7, stride=2, padding=3, dilation=1, groups=2)
    assert_expected_inline(
        described(layer),
        """\
MultiHeadedSpatialAttention(
  4, 8, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), groups=2
  (query): Conv2d(4, 8, kernel_size=(1, 1), stride=(1, 1))
  (key): Conv2d(4, 8, kernel_size=(1, 1), stride=(1, 1))
  (value): Conv2d(4, 8, kernel_size=(1, 1), stride=(1, 1))
)
row_embedding (2, 2, 7)
column_embedding (2, 2, 7)
query.weight (8, 4, 1, 1)
query.bias (8,)
key.weight (8, 4, 1, 1)
key.bias (8,)
value.weight (8, 4, 1, 1)
value.bias (8,)""",
    )


@golden(enn.PFLayerNorm)
def test_pf_layer_norm() -> None:
    assert_expected_inline(described(enn.PFLayerNorm()), """PFLayerNorm(dims=(1, 2, 3), eps=1e-05)""")


@golden(enn.CLayerNorm)
def test_c_layer_norm() -> None:
    assert_expected_inline(
        described(enn.CLayerNorm(8, (2, 3))),
        """\
CLayerNorm(8, dims=(2, 3), eps=1e-05)
weight (8,)
bias (8,)""",
    )


@golden(enn.SEBlock)
def test_se_block() -> None:
    assert_expected_inline(
        described(enn.SEBlock(32)),
        """\
SEBlock(
  (avgpool): GlobalAvgPool2d(output_size=1)
  (fc1): Conv2d(32, 2, kernel_size=(1, 1), stride=(1, 1))
  (fc2): Conv2d(2, 32, kernel_size=(1, 1), stride=(1, 1))
  (activation): SiLU()
  (scale_activation): Sigmoid()
)
fc1.weight (2, 32, 1, 1)
fc1.bias (2,)
fc2.weight (32, 2, 1, 1)
fc2.bias (32,)""",
    )


@golden(enn.Concatenation)
def test_concatenation() -> None:
    assert_expected_inline(described(enn.Concatenation(-1)), """Concatenation(dim=-1)""")


@golden(enn.ASPP)
def test_aspp() -> None:
    assert_expected_inline(
        described(enn.ASPP(4, [6], 3)),
        """\
ASPP(
  (convs): ModuleList(
    (0): ConvNormAct(
      (0): Conv2d(4, 3, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (2): ReLU(inplace=True)
    )
    (1): ConvNormAct(
      (0): Conv2d(4, 3, kernel_size=(3, 3), stride=(1, 1), padding=(6, 6), dilation=(6, 6), bias=False)
      (1): BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (2): ReLU(inplace=True)
    )
    (2): _PooledBranch(
      (0): AdaptiveAvgPool2d(output_size=1)
      (1): Conv2d(4, 3, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (2): BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (3): ReLU(inplace=True)
    )
  )
  (project): Sequential(
    (0): Conv2d(9, 3, kernel_size=(1, 1), stride=(1, 1), bias=False)
    (1): BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    (2): ReLU(inplace=True)
    (3): Dropout(p=0.5, inplace=False)
  )
)
convs.0.0.weight (3, 4, 1, 1)
convs.0.1.weight (3,)
convs.0.1.bias (3,)
convs.0.1.running_mean (3,)
convs.0.1.running_var (3,)
convs.0.1.num_batches_tracked ()
convs.1.0.weight (3, 4, 3, 3)
convs.1.1.weight (3,)
convs.1.1.bias (3,)
convs.1.1.running_mean (3,)
convs.1.1.running_var (3,)
convs.1.1.num_batches_tracked ()
convs.2.1.weight (3, 4, 1, 1)
convs.2.2.weight (3,)
convs.2.2.bias (3,)
convs.2.2.running_mean (3,)
convs.2.2.running_var (3,)
convs.2.2.num_batches_tracked ()
project.0.weight (3, 9, 1, 1)
project.1.weight (3,)
project.1.bias (3,)
project.1.running_mean (3,)
project.1.running_var (3,)
project.1.num_batches_tracked ()""",
    )


@golden(enn.UpBlock)
def test_up_block() -> None:
    up = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
    assert_expected_inline(
        described(enn.UpBlock(4, 2, 3, up_layer=up, norm_layer=None)),
        """\
UpBlock(
  mode='nearest'
  (up): ConvTranspose2d(4, 3, kernel_size=(2, 2), stride=(2, 2))
  (conv1): ConvNormAct(
    (0): Conv2d(5, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU(inplace=True)
  )
  (conv2): ConvNormAct(
    (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU(inplace=True)
  )
)
up.weight (4, 3, 2, 2)
up.bias (3,)
conv1.0.weight (3, 5, 3, 3)
conv1.0.bias (3,)
conv2.0.weight (3, 3, 3, 3)
conv2.0.bias (3,)""",
    )


@golden(enn.SPPF)
def test_sppf() -> None:
    assert_expected_inline(
        described(enn.SPPF(4, 6, pools=2)),
        """\
SPPF(
  (reduce): ConvNormAct(
    (0): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)
    (1): BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    (2): SiLU(inplace=True)
  )
  (pools): ModuleList(
    (0-1): 2 x MaxPool2d(kernel_size=5, stride=1, padding=2, dilation=1, ceil_mode=False)
  )
  (project): ConvNormAct(
    (0): Conv2d(6, 6, kernel_size=(1, 1), stride=(1, 1), bias=False)
    (1): BatchNorm2d(6, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    (2): SiLU(inplace=True)
  )
)
reduce.0.weight (2, 4, 1, 1)
reduce.1.weight (2,)
reduce.1.bias (2,)
reduce.1.running_mean (2,)
reduce.1.running_var (2,)
reduce.1.num_batches_tracked ()
project.0.weight (6, 6, 1, 1)
project.1.weight (6,)
project.1.bias (6,)
project.1.running_mean (6,)
project.1.running_var (6,)
project.1.num_batches_tracked ()""",
    )


@golden(enn.CSPBlock)
def test_csp_block() -> None:
    assert_expected_inline(
        described(enn.CSPBlock(4, 6, norm_layer=None)),
        """\
CSPBlock(
  aggregates=False
  (split): ConvNormAct(
    (0): Conv2d(4, 6, kernel_size=(1, 1), stride=(1, 1))
    (1): SiLU(inplace=True)
  )
  (blocks): ModuleList(
    (0): BasicBlock(
      (conv1): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn1): BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (act1): ReLU(inplace=True)
      (conv2): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn2): BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (act): ReLU(inplace=True)
    )
  )
  (project): ConvNormAct(
    (0): Conv2d(6, 6, kernel_size=(1, 1), stride=(1, 1))
    (1): SiLU(inplace=True)
  )
)
split.0.weight (6, 4, 1, 1)
split.0.bias (6,)
blocks.0.conv1.weight (3, 3, 3, 3)
blocks.0.bn1.weight (3,)
blocks.0.bn1.bias (3,)
blocks.0.bn1.running_mean (3,)
blocks.0.bn1.running_var (3,)
blocks.0.bn1.num_batches_tracked ()
blocks.0.conv2.weight (3, 3, 3, 3)
blocks.0.bn2.weight (3,)
blocks.0.bn2.bias (3,)
blocks.0.bn2.running_mean (3,)
blocks.0.bn2.running_var (3,)
blocks.0.bn2.num_batches_tracked ()
project.0.weight (6, 6, 1, 1)
project.0.bias (6,)""",
    )


@golden(enn.FeaturePyramid)
def test_feature_pyramid() -> None:
    assert_expected_inline(
        described(enn.FeaturePyramid([2, 4], 3)),
        """\
FeaturePyramid(
  (inner_blocks): ModuleList(
    (0): ConvNormAct(
      (0): Conv2d(2, 3, kernel_size=(1, 1), stride=(1, 1))
    )
    (1): ConvNormAct(
      (0): Conv2d(4, 3, kernel_size=(1, 1), stride=(1, 1))
    )
  )
  (layer_blocks): ModuleList(
    (0-1): 2 x ConvNormAct(
      (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    )
  )
)
inner_blocks.0.0.weight (3, 2, 1, 1)
inner_blocks.0.0.bias (3,)
inner_blocks.1.0.weight (3, 4, 1, 1)
inner_blocks.1.0.bias (3,)
layer_blocks.0.0.weight (3, 3, 3, 3)
layer_blocks.0.0.bias (3,)
layer_blocks.1.0.weight (3, 3, 3, 3)
layer_blocks.1.0.bias (3,)""",
    )


@golden(enn.PathAggregation)
def test_path_aggregation() -> None:
    assert_expected_inline(
        described(enn.PathAggregation(3, 2)),
        """\
PathAggregation(
  (down): ModuleList(
    (0): ConvNormAct(
      (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
      (1): ReLU(inplace=True)
    )
  )
  (fuse): ModuleList(
    (0): ConvNormAct(
      (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      (1): ReLU(inplace=True)
    )
  )
)
down.0.0.weight (3, 3, 3, 3)
down.0.0.bias (3,)
fuse.0.0.weight (3, 3, 3, 3)
fuse.0.0.bias (3,)""",
    )
