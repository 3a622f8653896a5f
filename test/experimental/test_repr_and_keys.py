"""The ``repr``, keys and shapes of each experimental layer."""

from functools import partial

from expecttest import assert_expected_inline
from torch import nn

from torchvision_layers.experimental import nn as enn

from ..conformance.specs import SPECS
from ..layers.test_repr_and_keys import GOLDEN, described, golden


def test_every_experimental_layer_is_described() -> None:
    assert set(GOLDEN) >= {spec.name for spec in SPECS if spec.status == "experimental"}


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


@golden(enn.RepConv)
def test_rep_conv() -> None:
    assert_expected_inline(
        described(enn.RepConv(4, 4, 5, branches=2, groups=2)),
        """\
RepConv(
  (convs): ModuleList(
    (0-1): 2 x ConvNormAct(
      (0): Conv2d(4, 4, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=2, bias=False)
      (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    )
  )
  (pointwise): ConvNormAct(
    (0): Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), groups=2, bias=False)
    (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  )
  (identity): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (act): ReLU(inplace=True)
)
convs.0.0.weight (4, 2, 5, 5)
convs.0.1.weight (4,)
convs.0.1.bias (4,)
convs.0.1.running_mean (4,)
convs.0.1.running_var (4,)
convs.0.1.num_batches_tracked ()
convs.1.0.weight (4, 2, 5, 5)
convs.1.1.weight (4,)
convs.1.1.bias (4,)
convs.1.1.running_mean (4,)
convs.1.1.running_var (4,)
convs.1.1.num_batches_tracked ()
pointwise.0.weight (4, 2, 1, 1)
pointwise.1.weight (4,)
pointwise.1.bias (4,)
pointwise.1.running_mean (4,)
pointwise.1.running_var (4,)
pointwise.1.num_batches_tracked ()
identity.weight (4,)
identity.bias (4,)
identity.running_mean (4,)
identity.running_var (4,)
identity.num_batches_tracked ()""",
    )


@golden(enn.PatchEmbedding)
def test_patch_embedding() -> None:
    assert_expected_inline(
        described(enn.PatchEmbedding(3, 8, 4, norm_layer=nn.LayerNorm)),
        """\
PatchEmbedding(
  (proj): Conv2d(3, 8, kernel_size=(4, 4), stride=(4, 4))
  (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
)
proj.weight (8, 3, 4, 4)
proj.bias (8,)
norm.weight (8,)
norm.bias (8,)""",
    )


@golden(enn.MultiHeadSelfAttention)
def test_multi_head_self_attention() -> None:
    assert_expected_inline(
        described(enn.MultiHeadSelfAttention(8, 2, 0.1, qk_norm_layer=nn.RMSNorm)),
        """\
MultiHeadSelfAttention(
  8, num_heads=2, dropout=0.1
  (in_proj): Linear(in_features=8, out_features=24, bias=True)
  (q_norm): RMSNorm((4,), eps=None, elementwise_affine=True)
  (k_norm): RMSNorm((4,), eps=None, elementwise_affine=True)
  (out_proj): Linear(in_features=8, out_features=8, bias=True)
)
in_proj.weight (24, 8)
in_proj.bias (24,)
q_norm.weight (4,)
k_norm.weight (4,)
out_proj.weight (8, 8)
out_proj.bias (8,)""",
    )


@golden(enn.TransformerEncoderBlock)
def test_transformer_encoder_block() -> None:
    assert_expected_inline(
        described(enn.TransformerEncoderBlock(2, 8, 16, layer_scale=1e-5)),
        """\
TransformerEncoderBlock(
  (ln_1): LayerNorm((8,), eps=1e-06, elementwise_affine=True)
  (self_attention): MultiHeadSelfAttention(
    8, num_heads=2
    (in_proj): Linear(in_features=8, out_features=24, bias=True)
    (q_norm): Identity()
    (k_norm): Identity()
    (out_proj): Linear(in_features=8, out_features=8, bias=True)
  )
  (dropout): Dropout(p=0.0, inplace=False)
  (ln_2): LayerNorm((8,), eps=1e-06, elementwise_affine=True)
  (mlp): MLP(
    (0): Linear(in_features=8, out_features=16, bias=True)
    (1): GELU(approximate='none')
    (2): Dropout(p=0.0, inplace=False)
    (3): Linear(in_features=16, out_features=8, bias=True)
    (4): Dropout(p=0.0, inplace=False)
  )
  (layer_scale_1): LayerScale(8, channels_dim=-1)
  (layer_scale_2): LayerScale(8, channels_dim=-1)
)
ln_1.weight (8,)
ln_1.bias (8,)
self_attention.in_proj.weight (24, 8)
self_attention.in_proj.bias (24,)
self_attention.out_proj.weight (8, 8)
self_attention.out_proj.bias (8,)
ln_2.weight (8,)
ln_2.bias (8,)
mlp.0.weight (16, 8)
mlp.0.bias (16,)
mlp.3.weight (8, 16)
mlp.3.bias (8,)
layer_scale_1.weight (8,)
layer_scale_2.weight (8,)""",
    )


@golden(enn.GatedMLP)
def test_gated_mlp() -> None:
    assert_expected_inline(
        described(enn.GatedMLP(4, [8, 6])),
        """\
GatedMLP(
  (fc1): Linear(in_features=4, out_features=16, bias=True)
  (activation): SiLU()
  (norm): Identity()
  (fc2): Linear(in_features=8, out_features=6, bias=True)
  (dropout): Dropout(p=0.0, inplace=False)
)
fc1.weight (16, 4)
fc1.bias (16,)
fc2.weight (6, 8)
fc2.bias (6,)""",
    )


@golden(enn.ClassifierHead)
def test_classifier_head() -> None:
    assert_expected_inline(
        described(enn.ClassifierHead(8, 3, norm_layer=nn.LayerNorm)),
        """\
ClassifierHead(
  (pool): AdaptiveAvgPool2d(output_size=1)
  (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
  (dropout): Dropout(p=0.0, inplace=False)
  (fc): Linear(in_features=8, out_features=3, bias=True)
)
norm.weight (8,)
norm.bias (8,)
fc.weight (3, 8)
fc.bias (3,)""",
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


@golden(enn.PatchMerging)
def test_patch_merging() -> None:
    assert_expected_inline(
        described(enn.PatchMerging(4, version=2)),
        """\
PatchMerging(
  4, version=2
  (linear): Linear(in_features=16, out_features=8, bias=False)
  (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
)
linear.weight (8, 16)
norm.weight (8,)
norm.bias (8,)""",
    )


@golden(enn.WindowAttention)
def test_window_attention() -> None:
    assert_expected_inline(
        described(enn.WindowAttention(6, 3, (3, 4), (1, 2))),
        """\
WindowAttention(
  6, num_heads=3, window_size=(3, 4), shift_size=(1, 2), version=1
  (qkv): Linear(in_features=6, out_features=18, bias=True)
  (proj): Linear(in_features=6, out_features=6, bias=True)
  (attention_dropout): Identity()
  (dropout): Identity()
)
relative_position_bias_table (35, 3)
relative_position_index (144,)
qkv.weight (18, 6)
qkv.bias (18,)
proj.weight (6, 6)
proj.bias (6,)""",
    )


@golden(enn.SwinBlock)
def test_swin_block() -> None:
    assert_expected_inline(
        described(enn.SwinBlock(6, 3, 4, 2, stochastic_depth=0.1, version=2)),
        """\
SwinBlock(
  (norm1): LayerNorm((6,), eps=1e-05, elementwise_affine=True)
  (attn): WindowAttention(
    6, num_heads=3, window_size=(4, 4), shift_size=(2, 2), version=2
    (qkv): KeyUnbiasedLinear(in_features=6, out_features=18, bias=True)
    (proj): Linear(in_features=6, out_features=6, bias=True)
    (attention_dropout): Identity()
    (dropout): Identity()
    (cpb_mlp): Sequential(
      (0): Linear(in_features=2, out_features=512, bias=True)
      (1): ReLU(inplace=True)
      (2): Linear(in_features=512, out_features=3, bias=False)
    )
  )
  (norm2): LayerNorm((6,), eps=1e-05, elementwise_affine=True)
  (mlp): MLP(
    (0): Linear(in_features=6, out_features=24, bias=True)
    (1): GELU(approximate='none')
    (2): Identity()
    (3): Linear(in_features=24, out_features=6, bias=True)
    (4): Identity()
  )
  (stochastic_depth1): StochasticDepth(p=0.1, mode=row)
  (stochastic_depth2): StochasticDepth(p=0.1, mode=row)
)
norm1.weight (6,)
norm1.bias (6,)
attn.logit_scale (3, 1, 1)
attn.relative_coords_table (1, 7, 7, 2)
attn.relative_position_index (256,)
attn.qkv.weight (18, 6)
attn.qkv.bias (18,)
attn.proj.weight (6, 6)
attn.proj.bias (6,)
attn.cpb_mlp.0.weight (512, 2)
attn.cpb_mlp.0.bias (512,)
attn.cpb_mlp.2.weight (3, 512)
norm2.weight (6,)
norm2.bias (6,)
mlp.0.weight (24, 6)
mlp.0.bias (24,)
mlp.3.weight (6, 24)
mlp.3.bias (6,)""",
    )


@golden(enn.PositionEmbedding2d)
def test_position_embedding_2d() -> None:
    assert_expected_inline(
        described(enn.PositionEmbedding2d(4, (7, 9))),
        """\
PositionEmbedding2d(4, grid_size=(7, 9))
weight (1, 4, 7, 9)""",
    )


@golden(enn.SinePositionEmbedding2d)
def test_sine_position_embedding_2d() -> None:
    assert_expected_inline(
        described(enn.SinePositionEmbedding2d(8)), """SinePositionEmbedding2d(8, temperature=10000.0, normalize=True)"""
    )
