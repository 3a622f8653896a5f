"""Type checkers see the constructors of quantizable twins, which their source does not repeat."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchvision_layers import quantized

TWINS = [getattr(quantized, name) for name in quantized.__all__ if hasattr(getattr(quantized, name), "float_class")]

# Each line that is wrong ends with what mypy must say about it.
CODE = """
from torch import Tensor, nn
from torchvision_layers import nn as tnn
from torchvision_layers import quantized

block: quantized.QuantizableBasicBlock = quantized.QuantizableBasicBlock(64, 64, stride=2, se_layer=nn.Identity)
layer: tnn.ConvNormAct = quantized.QuantizableConvNormAct(3, 8, activation_layer=None)
attention = quantized.QuantizableSqueezeExcitation(8, 2, scale_activation=nn.Hardsigmoid)
copied: quantized.QuantizableMLP = quantized.QuantizableMLP.from_float(tnn.MLP(4, [8]))

quantized.QuantizableConvNormAct(3, 8, strides=2)  # Unexpected keyword argument "strides"
quantized.QuantizableBasicBlock(64, "64")  # Argument 2 to "QuantizableBasicBlock" has incompatible type "str"
quantized.QuantizableSqueezeExcitation(8)  # Missing positional argument "squeeze_channels"
quantized.QuantizableMLP(4, 8)  # Argument 2 to "QuantizableMLP" has incompatible type "int"
quantized.QuantizableLayerScale(4, channels_dim=None)  # Argument "channels_dim" to "QuantizableLayerScale" has
"""


def test_mypy_sees_the_float_constructors(tmp_path: Path) -> None:
    file = tmp_path / "twins.py"
    file.write_text(CODE, encoding="utf-8")
    config = tmp_path / "mypy.ini"  # without torch, whose types play no part and take half a minute to read
    config.write_text("[mypy]\n[mypy-torch.*,torchvision.*]\nfollow_imports = skip\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = {i: line.partition("  # ")[2] for i, line in enumerate(CODE.splitlines(), 1) if "  # " in line}
    errors = {int(line): text for line, text in re.findall(r"twins\.py:(\d+): error: (.*)", result.stdout)}
    assert errors.keys() == expected.keys(), result.stdout + result.stderr
    assert all(errors[line].startswith(text) for line, text in expected.items()), result.stdout


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_signature_is_that_of_the_float_layer(twin: type[quantized.QuantizableLayer]) -> None:
    assert inspect.signature(twin) == inspect.signature(twin.float_class)
    assert "__init__" not in inspect.getsource(twin)
