"""The ``repr``, keys and shapes of each experimental layer."""

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
