"""The ``repr``, keys and shapes of each experimental layer."""

from expecttest import assert_expected_inline

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
