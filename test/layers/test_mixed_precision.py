"""Types that meet: half precision in float32 layers, float32 in half ones under autocast, nothing else."""

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn

LAYERS = {
    "FrozenBatchNorm2d": lambda: tnn.FrozenBatchNorm2d(3),
    "LayerNorm2d": lambda: tnn.LayerNorm2d(3),
    "LayerScale": lambda: tnn.LayerScale(3, 0.5),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@each_mode
@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_meets_float32(name: str, training: bool, dtype: torch.dtype) -> None:
    layer, x = LAYERS[name]().train(training), torch.randn(2, 3, 5, 4)
    output = layer(x.to(dtype))
    assert output.dtype is (torch.float32 if name == "LayerScale" else dtype)  # the norms give back what they took
    torch.testing.assert_close(output.float(), layer(x), rtol=2e-2, atol=2e-2)


@each_mode
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_lets_float32_into_a_half_layer(training: bool, is_compiled: bool) -> None:
    """After an operation that autocast keeps in float32."""
    layer: nn.Module = tnn.LayerScale(3, 0.5, dtype=torch.bfloat16).train(training)
    x = torch.randn(2, 3, 5, 4)
    with pytest.raises(TypeError, match=r"input must have the dtype of the layer, torch\.bfloat16, got torch\.float32"):
        layer(x)
    call = torch.compile(layer, fullgraph=True, backend="eager") if is_compiled else layer
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(x), x * 0.5)
        with pytest.raises(TypeError, match=r"input must have the dtype of the layer, torch\.bfloat16, got torch\.float64"):
            layer(x.double())
