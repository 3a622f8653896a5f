"""Convolutions with standardized filters in int8, for which they need no twin: they become plain convolutions."""

import pytest
import torch
from torch import nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing import LayerSpec, Sample
from torchvision_layers.testing._checks._quantization import decibels

from ...conformance.specs import weight_standardization

SAMPLES = [(spec, sample) for spec in weight_standardization.SPECS for sample in spec.samples]
ENGINES = [("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86")]


@pytest.mark.parametrize(("engine", "backend"), ENGINES, ids=lambda value: value)
@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=lambda value: getattr(value, "name", None) or value.id)
def test_samples_are_close_to_float(spec: LayerSpec, sample: Sample, engine: str, backend: str) -> None:
    layer = nn.Sequential(spec.cls(**sample.kwargs), nn.ReLU()).eval()
    x = torch.randn(8, *sample.shape[1:])
    int8 = quantized.quantize(layer, [x], engine=engine, backend=backend)
    assert decibels(layer(x), int8(x)) >= 30
    rows = quantized.report(int8).rows  # the padding of a mode other than zeros is in float
    assert {row.runs_in for row in rows if "conv" in row.after.lower()} == {"int8"}


def test_a_block_becomes_its_twin_with_plain_convolutions() -> None:
    block = tnn.BasicBlock(8, 8, conv_layer=tnn.WSConv2d).eval()
    x = torch.randn(4, 8, 8, 8)
    int8 = quantized.quantize(nn.Sequential(block), [x])
    assert decibels(block(x), int8(x)) >= 30
    assert {row.runs_in for row in quantized.report(int8).rows if row.before in ("WSConv2d", "add")} == {"int8"}


def test_training_in_eager_asks_for_folding() -> None:
    model = nn.Sequential(tnn.SWSConv2d(3, 8, 3), nn.ReLU()).eval()
    with pytest.raises(TypeError, match=r"0 is a SWSConv2d .*train deploy\.fold\(model\)\.requires_grad_\(\) instead"):
        quantized.prepare_qat(model)
    x = torch.randn(4, 3, 8, 8)
    prepared = quantized.prepare_qat(deploy.fold(model).requires_grad_().train())
    prepared(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    int8 = quantized.convert(prepared.eval())
    assert decibels(model(x), int8(x)) >= 25


def test_training_in_pt2e_changes_the_weights_before_their_standardization() -> None:
    model, x = nn.Sequential(tnn.WSConv2d(3, 8, 3), nn.ReLU()), torch.randn(4, 3, 8, 8)
    prepared = quantized.prepare_qat(model, x, engine="pt2e")
    parameters = dict(prepared.named_parameters())
    (weight,) = (value for name, value in parameters.items() if name.endswith("weight"))
    assert torch.equal(weight, model[0].weight)
    prepared(x).square().mean().backward()
    gradient = weight.grad.flatten(1)
    # That of a standardized filter has no component along a constant filter.
    assert bool((gradient.sum(1).abs() < 1e-4 * gradient.abs().sum(1)).all())
