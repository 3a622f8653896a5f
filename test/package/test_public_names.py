"""Public names and their arguments: every change fails here until it is recorded.

``EXPECTTEST_ACCEPT=1`` updates the expected texts. Removing or moving a name or an argument, or changing a default,
breaks the code of users.
"""

import inspect
import textwrap
from types import ModuleType

from expecttest import assert_expected_inline

from torchvision_layers import deploy, quantized, testing
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn


def default(value: object) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def signature(name: str, thing: object) -> str:
    """Name and arguments, without their types."""
    if not callable(thing):
        return name
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):  # enumerations have no signature in older Python versions
        return name
    words = []
    is_open = True
    for parameter in parameters:
        if is_open and parameter.kind is parameter.KEYWORD_ONLY:
            words.append("*")
            is_open = False
        empty = parameter.default is parameter.empty
        words.append(parameter.name if empty else f"{parameter.name}={default(parameter.default)}")
    return textwrap.fill(f"{name}({', '.join(words)})", width=100, subsequent_indent="    ")


def signatures(door: ModuleType) -> str:
    return "\n".join(signature(name, getattr(door, name)) for name in sorted(door.__all__))


def test_nn() -> None:
    assert_expected_inline(
        signatures(tnn),
        """\
BasicBlock(inplanes, planes, stride=1, downsample=None, groups=1, base_width=64, dilation=1,
    norm_layer=None, *, activation_layer=ReLU, se_layer=None, conv_layer=Conv2d,
    stochastic_depth=0.0, kept_rows_only=False, device=None, dtype=None)
Bottleneck(inplanes, planes, stride=1, downsample=None, groups=1, base_width=64, dilation=1,
    norm_layer=None, *, activation_layer=ReLU, se_layer=None, conv_layer=Conv2d,
    stochastic_depth=0.0, kept_rows_only=False, device=None, dtype=None)
Conv1dNormAct(in_channels, out_channels, kernel_size=3, stride=1, padding=None, groups=1,
    norm_layer=BatchNorm1d, activation_layer=ReLU, dilation=1, inplace=True, bias=None, *,
    conv_layer=Conv1d, device=None, dtype=None)
Conv2dSame(in_channels, out_channels, kernel_size, stride=1, padding='same', dilation=1, groups=1,
    bias=True, *, device=None, dtype=None)
Conv3dNormAct(in_channels, out_channels, kernel_size=3, stride=1, padding=None, groups=1,
    norm_layer=BatchNorm3d, activation_layer=ReLU, dilation=1, inplace=True, bias=None, *,
    conv_layer=Conv3d, device=None, dtype=None)
ConvNeXtBlock(dim, *, kernel_size=7, expansion=4, layer_scale=1e-06, stochastic_depth=0.0,
    kept_rows_only=False, norm_layer=None, activation_layer=GELU, hidden_norm_layer=None,
    conv_layer=Conv2d, device=None, dtype=None)
ConvNormAct(in_channels, out_channels, kernel_size=3, stride=1, padding=None, groups=1,
    norm_layer=BatchNorm2d, activation_layer=ReLU, dilation=1, inplace=True, bias=None, *,
    conv_layer=Conv2d, device=None, dtype=None)
DepthwiseSeparableConv(in_channels, out_channels, kernel_size=3, stride=1, padding=None, dilation=1,
    depth_multiplier=1, norm_layer=BatchNorm2d, activation_layer=ReLU, *, conv_layer=Conv2d,
    device=None, dtype=None)
FrozenBatchNorm2d(num_features, eps=1e-05, *, device=None, dtype=None)
FusedMBConv(in_channels, out_channels, kernel_size=3, stride=1, expand_ratio=4,
    norm_layer=BatchNorm2d, activation_layer=SiLU, *, conv_layer=Conv2d, stochastic_depth=0.0,
    kept_rows_only=False, device=None, dtype=None)
GlobalResponseNorm(dim, eps=1e-06, channels_dim=-1, *, device=None, dtype=None)
InvertedResidual(inp, oup, stride, expand_ratio, norm_layer=None, *, kernel_size=3, dilation=1,
    activation_layer=ReLU6, se_layer=None, conv_layer=Conv2d, stochastic_depth=0.0,
    kept_rows_only=False, device=None, dtype=None)
LayerNorm2d(num_channels, eps=1e-06, elementwise_affine=True, *, device=None, dtype=None)
LayerScale(dim, init_value=1e-06, channels_dim=1, *, device=None, dtype=None)
LazyConvNormAct(out_channels, kernel_size=3, stride=1, padding=None, groups=1,
    norm_layer=BatchNorm2d, activation_layer=ReLU, dilation=1, inplace=True, bias=None, *,
    device=None, dtype=None)
LazySqueezeExcitation(squeeze_channels, activation=ReLU, scale_activation=Sigmoid, *, device=None,
    dtype=None)
LinearDropoutAct(in_features, out_features, bias=True, dropout=0.0, activation_layer=ReLU,
    inplace=None, *, norm_layer=None, device=None, dtype=None)
MBConv(in_channels, out_channels, kernel_size=3, stride=1, expand_ratio=6, norm_layer=BatchNorm2d,
    activation_layer=SiLU, *, se_layer=SqueezeExcitation, conv_layer=Conv2d, stochastic_depth=0.0,
    kept_rows_only=False, device=None, dtype=None)
MLP(in_channels, hidden_channels, norm_layer=None, activation_layer=ReLU, inplace=None, bias=True,
    dropout=0.0, *, device=None, dtype=None)
Permute(dims, *, device=None, dtype=None)
SWSConv2d(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
    bias=True, padding_mode='zeros', *, activation=ReLU, gamma=None, eps=1e-10, device=None,
    dtype=None)
SqueezeExcitation(input_channels, squeeze_channels, activation=ReLU, scale_activation=Sigmoid, *,
    device=None, dtype=None)
StochasticDepth(p, mode, *, kept_rows_only=False, device=None, dtype=None)
UniversalInvertedBottleneck(in_channels, out_channels, start_kernel_size, middle_kernel_size,
    stride=1, expand_ratio=4, *, norm_layer=BatchNorm2d, activation_layer=ReLU, se_layer=None,
    conv_layer=Conv2d, layer_scale=None, stochastic_depth=0.0, kept_rows_only=False, device=None,
    dtype=None)
WSConv2d(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
    bias=True, padding_mode='zeros', *, eps=1e-10, device=None, dtype=None)
replace(model, old, new, *, inplace=False)
stochastic_depth_schedule(rate, depths)""",
    )


def test_quantized() -> None:
    """Twins have the arguments of their layers, which another test checks, so only their names are recorded."""
    twins = [name for name in quantized.__all__ if isinstance(getattr(quantized, name), type)]
    functions = [signature(name, getattr(quantized, name)) for name in quantized.__all__ if name not in twins]
    assert_expected_inline(
        "\n".join(sorted(twins) + sorted(functions)),
        """\
Addition
Concatenation
Multiplication
Percentile
QuantizableBasicBlock
QuantizableBottleneck
QuantizableConv1dNormAct
QuantizableConv2dSame
QuantizableConv3dNormAct
QuantizableConvNeXtBlock
QuantizableConvNormAct
QuantizableDepthwiseSeparableConv
QuantizableFusedMBConv
QuantizableGraph
QuantizableInvertedResidual
QuantizableLayer
QuantizableLayerNorm2d
QuantizableLayerScale
QuantizableLinearDropoutAct
QuantizableMBConv
QuantizableMLP
QuantizableModel
QuantizablePositionalConv2d
QuantizableSqueezeExcitation
Report
ReportRow
Trial
convert(model, *, check=True)
freeze(model)
fuse_model(model, is_qat=None)
prepare_qat(model, example=None, *, backend='auto', engine='eager', allow_float=False,
    dynamic_sizes=None, per_channel=True, exclude=(), check=True, vnni=False)
quantizable(model, *, allow_float=False)
quantize(model, batches, *, backend='auto', engine='eager', allow_float=False, dynamic_sizes=None,
    per_channel=True, ranges='histogram', rounding='nearest', progress=True, exclude=(),
    tolerance=None, drop=None, check=True, vnni=False)
report(int8, batches=None, *, model=None, progress=True)""",
    )


def test_deploy() -> None:
    things = {name: getattr(deploy, name) for name in deploy.__all__}
    shown = [name if isinstance(thing, type) else signature(name, thing) for name, thing in things.items()]
    assert_expected_inline(
        "\n".join(shown),
        """\
Exported
Loaded
LoweredModel
equalize(model, batch=None)
export(model, example, path, *, format=None, lowered=None, classes=(), mean=(), std=(), about=None)
fold(model, batch=None)
load(path, *, threads=None, providers=None)
lower(model, example, *, dtype=torch.float32, threads=None)""",
    )


def test_experimental() -> None:
    assert_expected_inline(
        signatures(enn),
        """\
ASPP(in_channels, atrous_rates, out_channels=256, *, norm_layer=BatchNorm2d, activation_layer=ReLU,
    dropout=0.5, device=None, dtype=None)
CLayerNorm(channels, dims=(1, 2, 3), eps=1e-05, *, device=None, dtype=None)
CSPBlock(in_channels, out_channels, block=BasicBlock, *, depth=1, aggregates=False,
    hidden_channels=None, norm_layer=BatchNorm2d, activation_layer=SiLU, device=None, dtype=None)
ClassifierHead(in_channels, num_classes, *, pool_layer=functools.partial(<class
    'torch.nn.modules.pooling.AdaptiveAvgPool2d'>, 1), norm_layer=None, dropout=0.0, bias=True,
    device=None, dtype=None)
Concatenation(dim=1)
CoordConv2d(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
    bias=True, padding_mode='zeros', *, with_r=False, device=None, dtype=None)
FeaturePyramid(in_channels_list, out_channels, extra_blocks=None, norm_layer=None, *, device=None,
    dtype=None)
Flatten(start_dim=1, end_dim=-1)
GatedMLP(in_channels, hidden_channels, norm_layer=None, activation_layer=SiLU, bias=True,
    dropout=0.0, *, device=None, dtype=None)
Mish(inplace=False)
MultiHeadSelfAttention(embed_dim, num_heads, dropout=0.0, bias=True, *, out_bias=True,
    qk_norm_layer=None, device=None, dtype=None)
MultiHeadedSpatialAttention(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1,
    groups=1, bias=True, *, device=None, dtype=None)
PFLayerNorm(dims=(1, 2, 3), eps=1e-05, *, device=None, dtype=None)
PatchEmbedding(in_channels, embed_dim, patch_size, *, stride=None, padding=0, bias=True,
    norm_layer=None, device=None, dtype=None)
PatchMerging(dim, norm_layer=LayerNorm, *, version=1, device=None, dtype=None)
PathAggregation(channels, levels, *, norm_layer=None, activation_layer=ReLU, device=None,
    dtype=None)
PositionEmbedding2d(channels, grid_size, *, device=None, dtype=None)
RepConv(in_channels, out_channels, kernel_size=3, stride=1, dilation=1, groups=1,
    padding_mode='zeros', *, branches=1, pointwise=True, identity=True, norm_layer=BatchNorm2d,
    activation_layer=ReLU, se_layer=None, device=None, dtype=None)
SEBlock(in_channels=None, ratio=16, activation=SiLU, *, device=None, dtype=None)
SPPF(in_channels, out_channels, kernel_size=5, *, pools=3, hidden_channels=None,
    norm_layer=BatchNorm2d, activation_layer=SiLU, device=None, dtype=None)
SinePositionEmbedding2d(channels, temperature=10000.0, normalize=True, *, device=None, dtype=None)
SwinBlock(dim, num_heads, window_size, shift_size=0, *, mlp_ratio=4.0, dropout=0.0,
    attention_dropout=0.0, stochastic_depth=0.0, kept_rows_only=False, norm_layer=LayerNorm,
    activation_layer=GELU, version=1, device=None, dtype=None)
Swish(inplace=False)
TransformerEncoderBlock(num_heads, hidden_dim, mlp_dim, dropout=0.0, attention_dropout=0.0,
    norm_layer=None, *, attention_layer=MultiHeadSelfAttention, mlp_layer=None, layer_scale=None,
    stochastic_depth=0.0, kept_rows_only=False, device=None, dtype=None)
UpBlock(in_channels, skip_channels, out_channels, *, up_layer=None, mode='nearest',
    norm_layer=BatchNorm2d, activation_layer=ReLU, device=None, dtype=None)
WindowAttention(dim, num_heads, window_size, shift_size=0, *, qkv_bias=True, proj_bias=True,
    attention_dropout=0.0, dropout=0.0, version=1, device=None, dtype=None)""",
    )


def test_testing() -> None:
    things = {name: getattr(testing, name) for name in testing.__all__}
    functions = {name for name, thing in things.items() if inspect.isfunction(thing)}
    shown = [signature(name, thing) if name in functions else name for name, thing in things.items()]
    assert_expected_inline(
        "\n".join(sorted(shown)),
        """\
BadArguments
BadInput
CHECKS
Case
Check
GROUPS
InvalidInput
LayerCheckError
LayerSpec
NotApplicable
Outcome
Reference
Report
Sample
ShapeExample
Status
Tier
XFail
cases_of(spec, check, device='cpu')
check(id, *, tier=<Tier.EVERY_CHANGE: 'every change'>, variants=('',), not_applicable=(),
    per_layer=False, reads_values=True, ignored_warnings=())
check_layer(cls, samples, *, bad_arguments=(), bad_inputs=(), twin=None, geometries=None,
    expected_failures=None, rows=None, slow=False, device='cpu', raise_on_error=True)
run_case(check, case)""",
    )
