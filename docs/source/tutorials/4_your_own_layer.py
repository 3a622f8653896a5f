"""
Your own layer: check, quantize, fold, export, copy
===================================================

You wrote a layer. This page shows what the package does for it: checks that find what users will stumble over, int8
without a line of code for it, a folded form for inference, files, and a copy that needs only torch.
"""

# %%
# The layer
# ---------
#
# A depthwise convolution whose result is scaled per channel by a learned gain, with a shortcut. It has two faults
# that many layers have: it swallows misspelled arguments, and it makes images contiguous.

import contextlib
import io
import subprocess
import sys
from pathlib import Path

Path("gated.py").write_text('''
import torch
from torch import Tensor, nn


class Gated(nn.Module):
    """Adds a depthwise convolution, scaled by a gain per channel, to its input."""

    def __init__(self, channels: int, device=None, dtype=None, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, device=device, dtype=dtype)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.5, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        return self.gain * self.conv(input.contiguous()) + input
''')
sys.path.insert(0, ".")

import torch
from gated import Gated
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing import Sample, check_layer

# %%
# Check
# -----
#
# A sample has the arguments and the shape of an input. Sizes that differ reveal a layer that confuses dimensions.

sample = Sample("default", {"channels": 4}, (2, 4, 6, 7))
with contextlib.redirect_stdout(io.StringIO()):
    report = check_layer(Gated, sample, raise_on_error=False)
print("\n".join(line for line in str(report).splitlines() if "FAILED" in line))

# %%
# Both faults are found, with the sample and the mode. Here is the layer without them:

torch.manual_seed(0)


class BetterGated(nn.Module):
    """Adds a depthwise convolution, scaled by a gain per channel, to its input."""

    def __init__(self, channels: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, device=device, dtype=dtype)
        self.gain = tnn.LayerScale(channels, 0.5, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.gain(self.conv(input))


layer = BetterGated(4).eval()
images = torch.randn(8, 4, 16, 16)

# %%
# Fold
# ----
#
# The scale moves into the weights of the convolution. ``fold`` traces the ``forward``, so it does so in layers of
# your own too.

folded = deploy.fold(nn.Sequential(layer, nn.ReLU()).eval(), images)
print(folded)

# %%
# Quantize
# --------
#
# The addition becomes a module, and the report shows what runs in int8:

int8 = quantized.quantize(folded, [images])
print(quantized.report(int8, [images]))

# %%
# Export
# ------

for name in ("gated.pt2", "gated.onnx"):
    exported = deploy.export(folded, images, name)
    print(f"{name}: {exported.size:,} bytes, differs from the model by {exported.difference:.1e}")

# %%
# Copy
# ----
#
# ``python -m torchvision_layers.standalone`` writes a model, with every layer that it uses, to one file that needs
# only torch:

Path("net.py").write_text('''
from torch import nn

from torchvision_layers import nn as tnn


def build() -> nn.Module:
    """A classifier."""
    return nn.Sequential(tnn.ConvNormAct(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
''')
command = [sys.executable, "-m", "torchvision_layers.standalone", "net.py:build", "--output", "alone.py"]
print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
source = Path("alone.py").read_text()
print(*(line for line in source.splitlines() if line.startswith(("import ", "from ", "class "))), sep="\n")

# %%
# Upstream
# --------
#
# A layer that more people need can become part of this package: :doc:`/staging` shows the way from a file to a stable
# layer, with its reference in NumPy, and :doc:`/upstream` from there to a pull request for torchvision.
