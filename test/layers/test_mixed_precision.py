"""Mixed precision: half-precision inputs of float32 layers, and float32 inputs of half layers under autocast."""

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
def test_float32_layers_accept_half_precision(name: str, training: bool, dtype: torch.dtype) -> None:
    layer, x = LAYERS[name]().train(training), torch.randn(2, 3, 5, 4)
    output = layer(x.to(dtype))
    assert output.dtype is (torch.float32 if name == "LayerScale" else dtype)  # norms return the dtype of x
    torch.testing.assert_close(output.float(), layer(x), rtol=2e-2, atol=2e-2)


@each_mode
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_half_layers_accept_float32_under_autocast(training: bool, is_compiled: bool) -> None:
    """The input may come from an operation that autocast runs in float32."""
    layer: nn.Module = tnn.LayerScale(3, 0.5, dtype=torch.bfloat16).train(training)
    x = torch.randn(2, 3, 5, 4)
    message = r"input must have the dtype of the layer, torch\.bfloat16, got torch\."
    with pytest.raises(TypeError, match=f"{message}float32"):
        layer(x)
    call = torch.compile(layer, fullgraph=True, backend="eager") if is_compiled else layer
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(x), x * 0.5)
        with pytest.raises(TypeError, match=f"{message}float64"):
            layer(x.double())
