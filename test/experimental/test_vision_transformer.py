"""Layers of vision transformers against torchvision, timm and torch's own attention, and the claims of their papers."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import LayerSpec, Sample
from torchvision_layers.testing._case import Case
from torchvision_layers.testing._checks._quantization import calibration, decibels

from ..conformance.specs import tokens


def stirred(module: nn.Module) -> nn.Module:
    """Parameters that no default produces."""
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return module.eval()


# torchvision and torch

# An even number of heads takes torch's kernel for inference; the last is the size of ViT-B/32 at 224 pixels.
SIZES = [(2, 17, 96, 4), (3, 37, 48, 2), (5, 9, 60, 3), (4, 50, 768, 12)]


def without_kernel(call: Callable[[], Tensor]) -> Tensor:
    """The result without the kernel that ``nn.MultiheadAttention`` runs in inference."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return call()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(("batch", "length", "channels", "heads"), SIZES)
def test_block_equals_torchvision_bit_for_bit(batch: int, length: int, channels: int, heads: int) -> None:
    """In inference, with gradients, and in inference without the kernel; strict loading in all of them."""
    theirs = stirred(EncoderBlock(heads, channels, 2 * channels, 0.1, 0.1))
    ours = enn.TransformerEncoderBlock(heads, channels, 2 * channels, 0.1, 0.1).eval()
    x = torch.randn(batch, length, channels)
    assert not torch.equal(ours(x), theirs(x))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(without_kernel(lambda: ours(x)), without_kernel(lambda: theirs(x)))


def test_old_checkpoints_of_torchvision_load() -> None:
    """Before version 0.12, the linear layers of the MLP had names."""
    reference, block = EncoderBlock(2, 8, 16, 0.0, 0.0).eval(), enn.TransformerEncoderBlock(2, 8, 16).eval()
    state = OrderedDict(
        (key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."), value)
        for key, value in reference.state_dict().items()
    )
    block.load_state_dict(state)
    x = torch.randn(2, 5, 8)
    assert torch.equal(block(x), reference(x))


def test_block_has_the_initial_weights_and_gradients_of_torchvision() -> None:
    blocks = []
    for make in (EncoderBlock, enn.TransformerEncoderBlock):
        torch.manual_seed(3)
        blocks.append(make(4, 32, 64, 0.1, 0.2))
    x = torch.randn(3, 9, 32)
    outputs = []
    for block in blocks:
        torch.manual_seed(1)  # dropout draws the same numbers
        outputs.append(block(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for (name, theirs), ours in zip(blocks[0].named_parameters(), blocks[1].parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_masks_equal_those_of_torch(bias: bool) -> None:
    """Booleans are those of ``scaled_dot_product_attention``, the opposite of those of ``nn.MultiheadAttention``."""
    theirs = stirred(nn.MultiheadAttention(24, 4, bias=bias, batch_first=True))
    ours = enn.MultiHeadSelfAttention(24, 4, bias=bias, out_bias=bias).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 7, 24)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    numbers = torch.randn(3, 4, 7, 7)
    for mask, their_mask in ((causal, ~causal), (numbers, numbers.flatten(0, 1))):
        expected, _ = theirs(x, x, x, attn_mask=their_mask, need_weights=False)
        torch.testing.assert_close(ours(x, mask), expected)
    torch.testing.assert_close(ours(x, causal)[:, :4], ours(x[:, :4], causal[:4, :4]))  # later tokens do not matter


@pytest.mark.parametrize("shape", [(7,), (7, 6), (2, 1, 7, 7), (1, 3, 7, 7), (1, 3, 4, 7, 7)])
def test_masks_of_other_shapes_raise(shape: tuple[int, ...]) -> None:
    layer = enn.MultiHeadSelfAttention(24, 4)
    with pytest.raises(ValueError, match=r"attn_mask must have a shape that broadcasts to \[3, 4, 7, 7\], got"):
        layer(torch.randn(3, 7, 24), torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16])
def test_masks_of_other_dtypes_raise(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"attn_mask must be boolean or torch.float32, the dtype of input, got {dtype}"):
        enn.MultiHeadSelfAttention(24, 4)(torch.randn(3, 7, 24), torch.ones(7, 7, dtype=dtype))


@pytest.mark.parametrize("mask", [[[True] * 7] * 7, np.ones((7, 7), bool)])
def test_masks_that_are_no_tensors_raise(mask: Any) -> None:
    with pytest.raises(TypeError, match=f"attn_mask must be a Tensor, got {type(mask).__name__}"):
        enn.MultiHeadSelfAttention(24, 4)(torch.randn(3, 7, 24), mask)


def test_masks_under_autocast() -> None:
    layer, x, mask = enn.MultiHeadSelfAttention(24, 4).eval(), torch.randn(3, 7, 24), torch.randn(7, 7)
    expected = layer(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        for input in (x, x.bfloat16()):
            torch.testing.assert_close(layer(input, mask).float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_inference_in_other_dtypes_and_layouts(dtype: torch.dtype) -> None:
    """The kernel for inference gives the values of ``scaled_dot_product_attention``."""
    layer, x = stirred(enn.MultiHeadSelfAttention(16, 4)).to(dtype), torch.randn(5, 3, 16, dtype=dtype).transpose(0, 1)
    with torch.no_grad():
        tolerance = 10 * torch.finfo(dtype).eps
        torch.testing.assert_close(layer(x), without_kernel(lambda: layer(x)), rtol=tolerance, atol=tolerance)
        assert layer(x[:0]).shape == (0, 5, 16)
        assert layer(x[:, :0]).shape == (3, 0, 16)


def test_block_passes_the_mask_to_its_attention() -> None:
    block, x = stirred(enn.TransformerEncoderBlock(2, 8, 16)), torch.randn(2, 6, 8)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(block(x, causal)[:, :3], block(x[:, :3], causal[:3, :3]))
    assert not torch.allclose(block(x, causal), block(x))


def test_hooks_and_replaced_layers_run_in_inference() -> None:
    """The kernel for inference would bypass both."""
    layer, x, calls = stirred(enn.MultiHeadSelfAttention(16, 4)), torch.randn(2, 5, 16), []
    with torch.no_grad():
        expected = layer(x)
        handles = [child.register_forward_hook(lambda *_: calls.append(1)) for child in (layer.in_proj, layer.out_proj)]
        torch.testing.assert_close(layer(x), expected)
        assert len(calls) == 2
        for handle in handles:
            handle.remove()
        layer.out_proj = nn.Identity()
        assert not torch.allclose(layer(x), expected)


def test_long_sequences_do_not_use_the_kernel_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is quadratic in the number of tokens, that of ``scaled_dot_product_attention`` linear."""
    layer, lengths, kernel = enn.MultiHeadSelfAttention(4, 2).eval(), [], torch._native_multi_head_attention

    def recorded(query: Tensor, *args: object, **kwargs: object) -> object:
        lengths.append(query.shape[1])
        return kernel(query, *args, **kwargs)

    monkeypatch.setattr(torch, "_native_multi_head_attention", recorded)
    with torch.no_grad():
        for length in (197, 2049):
            layer(torch.randn(1, length, 4))
    assert lengths == [197]


# timm


def test_patch_embedding_equals_timm_and_torchvision() -> None:
    theirs = stirred(timm.layers.PatchEmbed(32, 8, 3, 12, norm_layer=nn.LayerNorm))
    ours = enn.PatchEmbedding(3, 12, 8, norm_layer=nn.LayerNorm).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))

    conv = nn.Conv2d(3, 12, 8, 8)
    plain = enn.PatchEmbedding(3, 12, 8)
    plain.load_state_dict(conv.state_dict(), strict=True)
    assert torch.equal(plain(x), conv(x).flatten(2).transpose(1, 2))


def test_block_equals_timm() -> None:
    theirs = stirred(Block(24, 4, 2.0, qkv_bias=True, qk_norm=True, init_values=0.1))
    attention = partial(enn.MultiHeadSelfAttention, qk_norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = enn.TransformerEncoderBlock(
        4, 24, 48, norm_layer=partial(nn.LayerNorm, eps=1e-6), attention_layer=attention, layer_scale=1.0
    ).eval()
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    names = {
        "norm1": "ln_1", "attn.qkv": "self_attention.in_proj", "attn.proj": "self_attention.out_proj",
        "attn": "self_attention", "ls1.gamma": "layer_scale_1.weight", "norm2": "ln_2", "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3", "ls2.gamma": "layer_scale_2.weight",
    }  # fmt: skip
    state = {}
    for key, value in theirs.state_dict().items():
        theirs_name = next(name for name in names if key.startswith(name))
        state[names[theirs_name] + key.removeprefix(theirs_name)] = value
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("bias", [True, False])
def test_gated_mlp_equals_timm(bias: bool) -> None:
    ours = stirred(enn.GatedMLP(6, [8, 4], bias=bias))
    theirs = timm.layers.SwiGLUPacked(6, 16, 4, bias=bias).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm_layer", [None, nn.LayerNorm])
def test_classifier_head_equals_timm(norm_layer: type[nn.Module] | None) -> None:
    x = torch.randn(3, 8, 5, 4)
    ours = stirred(enn.ClassifierHead(8, 10, norm_layer=norm_layer, dropout=0.1))
    if norm_layer is None:
        theirs = timm.layers.ClassifierHead(8, 10)
    else:
        theirs = timm.layers.NormMlpClassifierHead(8, 10, norm_layer=timm.layers.LayerNorm2d)
        theirs.norm.eps = ours.norm.eps
    theirs.eval().load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x))


# Claims of the papers


@pytest.mark.parametrize(("stride", "tokens"), [(4, {4}), (2, {7, 8, 12, 13})])
def test_a_pixel_reaches_the_tokens_of_its_patches(stride: int, tokens: set[int]) -> None:
    """One token without overlap; SegFormer's overlapping patches share pixels."""
    layer, x = enn.PatchEmbedding(1, 3, 4, stride=stride), torch.randn(1, 1, 12, 12)
    changed = x.clone()
    changed[0, 0, 4, 7] += 1  # in rows 1 and 2 and columns 2 and 3 of the five by five patches with overlap
    assert set((layer(changed) - layer(x)).abs().amax((0, 2)).nonzero().flatten().tolist()) == tokens


def test_attention_has_no_order() -> None:
    """Without a position embedding, a permutation of the tokens permutes the output."""
    block, x, order = stirred(enn.TransformerEncoderBlock(2, 8, 16)), torch.randn(2, 6, 8), torch.randperm(6)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_norms_of_queries_and_keys_bound_the_attention_scores() -> None:
    """Scores grow with the square of the weights and make attention one-hot, arXiv 2302.05442; norms prevent it."""
    x, largest = torch.randn(1, 64, 32), {}
    for norm in (None, partial(nn.LayerNorm, elementwise_affine=False)):
        layer = enn.MultiHeadSelfAttention(32, 2, qk_norm_layer=norm)
        with torch.no_grad():
            layer.in_proj.weight *= 30
            query, key, _ = layer.in_proj(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            scores = layer.q_norm(query) @ layer.k_norm(key).transpose(-2, -1) / math.sqrt(16)
        largest[norm] = float(scores.softmax(-1).amax(-1).mean())
    plain, normed = largest.values()
    assert plain > 0.95
    assert normed < 0.3


def test_a_gated_mlp_of_two_thirds_has_the_parameters_of_an_mlp() -> None:
    plain, gated = tnn.MLP(96, [384, 96], bias=False), enn.GatedMLP(96, [256, 96], bias=False)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (plain, gated)]
    assert counts[0] == counts[1]


def test_a_small_layer_scale_starts_near_the_identity() -> None:
    """CaiT, arXiv 2103.17239, section 2."""
    block, x = enn.TransformerEncoderBlock(2, 8, 16, layer_scale=1e-6), torch.randn(2, 6, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)


def test_stochastic_depth_drops_branches_of_samples() -> None:
    """Both branches of a sample are dropped in 25 % of the cases; the expected output is that of eval mode."""
    block = enn.TransformerEncoderBlock(2, 8, 16, stochastic_depth=0.5)
    x = torch.randn(1, 5, 8).expand(4000, -1, -1)
    with torch.no_grad():
        skipped = (block.train()(x) == x).flatten(1).all(1)
    assert skipped.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_kept_rows_only_computes_the_same() -> None:
    """With the same seed, outputs and gradients equal those of the plain form, and only kept samples are computed."""
    blocks = [
        enn.TransformerEncoderBlock(2, 8, 16, stochastic_depth=0.5, kept_rows_only=kept) for kept in (False, True)
    ]
    blocks[1].load_state_dict(stirred(blocks[0]).state_dict())
    x, results, rows = torch.randn(16, 5, 8), [], []
    blocks[1].mlp.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    for block in blocks:
        torch.manual_seed(4)
        output = block.train()(x)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in block.parameters())])
    for plain, kept in zip(*results, strict=True):
        torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-4)
    assert 0 < rows[0] < 16
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    assert blocks[1](x, causal).shape == x.shape
    assert rows[1:] == [16]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, tnn.LayerNorm2d, nn.Identity])
def test_any_norm(norm: type[nn.Module]) -> None:
    """Except one over another dimension, which raises an error."""
    block, x = enn.TransformerEncoderBlock(2, 8, 16, norm_layer=norm), torch.randn(2, 6, 8)
    if norm is tnn.LayerNorm2d:
        with pytest.raises(ValueError, match="input must have 4 dimensions, got 3"):
            block(x)
    else:
        assert block(x).shape == x.shape


@pytest.mark.parametrize(
    "mlp",
    [partial(tnn.MLP, activation_layer=nn.SiLU), enn.GatedMLP, partial(enn.GatedMLP, norm_layer=nn.LayerNorm)],
)
def test_any_mlp(mlp: Callable[..., nn.Module]) -> None:
    for dropout in (0.0, 0.2):
        block = enn.TransformerEncoderBlock(2, 8, 16, dropout, mlp_layer=mlp)
        rates = {module.p for module in block.mlp.modules() if isinstance(module, nn.Dropout)}
        assert rates == {dropout}
        assert block(torch.randn(2, 6, 8)).shape == (2, 6, 8)


def test_every_layer_has_sizes() -> None:
    layers = {
        enn.PatchEmbedding(3, 8, 4): (8, 4),
        enn.PatchEmbedding(3, 8, 7, stride=4, padding=3): (8, 4),
        enn.MultiHeadSelfAttention(8, 2): (8, 1),
        enn.TransformerEncoderBlock(2, 8, 16): (8, 1),
    }
    for layer, sizes in layers.items():
        assert (layer.out_channels, layer.reduction) == sizes
    assert enn.GatedMLP(4, [8, 6]).out_channels == 6
    assert enn.ClassifierHead(4, 10).out_channels == 10


# int8

SAMPLES = [
    pytest.param(spec, sample, id=f"{spec.name}-{sample.id}") for spec in tokens.SPECS for sample in spec.samples
]


@pytest.mark.parametrize("backend", ["x86", pytest.param("onednn", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("spec", "sample"), SAMPLES)
def test_int8_is_close_to_float(spec: LayerSpec, sample: Sample, backend: str) -> None:
    """All linear layers and convolutions are int8, within 30 dB of float; a conformance check tests pt2e."""
    torch.manual_seed(0)
    layer, batches = Case(spec, sample, "eval").layer().eval(), calibration(sample)
    int8 = quantized.quantize(copy.deepcopy(layer), batches, backend=backend)
    x = torch.cat(batches)
    assert decibels(layer(x), int8(x)) >= 30
    rows = [row for row in quantized.report(int8).rows if row.before in ("Conv2d", "Linear")]
    assert {row.runs_in for row in rows} == {"int8"}
    assert len(rows) == sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in layer.modules())
