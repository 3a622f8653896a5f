"""Layers without a twin in int8: no line of theirs mentions it, because their forward is rewritten."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing import LayerSpec, Sample

from ...conformance.specs import SPECS

NAMES = {"GlobalResponseNorm", "RepConv", "UniversalInvertedBottleneck"}
SAMPLES = [(spec, sample) for spec in SPECS if spec.name in NAMES for sample in spec.samples]
ENGINES = [("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86")]


@pytest.mark.parametrize(("engine", "backend"), ENGINES, ids=lambda value: value)
@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=lambda value: getattr(value, "name", None) or value.id)
def test_samples_are_close_to_float(spec: LayerSpec, sample: Sample, engine: str, backend: str) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(spec.cls(**sample.kwargs)).eval()
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if value.dim() == 1:
                value.uniform_(0.5, 2) if name.endswith(("weight", "running_var")) else value.normal_()
    x = torch.randn(8, *sample.shape[1:])
    int8 = quantized.quantize(layer, [x], engine=engine, backend=backend)
    assert decibels(layer(x), int8(x)) >= 30
    rows = quantized.report(int8).rows
    if engine == "eager":  # the other also reports padding as float
        islands = (spec.cls,) if sample.is_island else sample.islands
        in_float = {row.before for row in rows if row.runs_in == "float"} - {""}  # operations have no class before
        assert in_float <= {cls.__name__ for cls in islands}


def decibels(expected: Tensor, output: Tensor) -> float:
    return 10 * (expected.square().sum() / (expected - output).square().sum()).log10().item()
