"""The first steps of a new user with an installed torchvision_layers, one line per step.

    python tools/first_steps.py README.md

imports the package, runs the code of the README, and checks, quantizes, exports and loads a small model, in a new
folder. It needs no extra. If a step fails, it exits with status 1.
"""

import argparse
import importlib
import json
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path


def import_package() -> None:
    import torchvision_layers
    from torchvision_layers import nn

    assert nn.ConvNormAct
    assert torchvision_layers.__version__


def run_readme(readme: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks, "the README must have blocks of Python"
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


# In a file of its own, as users write it: a check pickles the layer.
_LAYER = """
import torch
from torch import nn


class ChannelGain(nn.Module):
    def __init__(self, channels: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1, device=device, dtype=dtype))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(input, self.gain, groups=self.channels)
"""


def check_a_layer() -> None:
    from torchvision_layers.testing import Sample, check_layer

    Path("channel_gain.py").write_text(_LAYER)
    sys.path.insert(0, os.getcwd())
    layer = importlib.import_module("channel_gain").ChannelGain
    check_layer(layer, Sample("default", {"channels": 3}, (2, 3, 6, 7)))


def quantize_and_export() -> None:
    import torch
    import torchvision

    from torchvision_layers import deploy, quantized

    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=4).eval()
    batches = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    folded = deploy.fold(model, batches[0])
    int8 = quantized.quantize(model, batches)
    deploy.export(int8, batches[0], "int8.pt", format="torchscript")
    deploy.export(folded, batches[0], "float.pt2")
    torch.testing.assert_close(deploy.load("int8.pt")(batches[0]), int8(batches[0]), rtol=0, atol=0)
    torch.testing.assert_close(deploy.load("float.pt2")(batches[0]), model(batches[0]), rtol=0, atol=1e-4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", type=Path, help="the README whose code runs")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of lines")
    args = parser.parse_args()
    readme = args.readme.read_text(encoding="utf-8")
    steps: dict[str, Callable[[], None]] = {
        "import": import_package,
        "README": lambda: run_readme(readme),
        "check_layer": check_a_layer,
        "quantize, export": quantize_and_export,
    }
    outcomes: dict[str, str] = {}
    output = sys.stdout
    sys.stdout = sys.stderr  # reports that the README prints
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, step in steps.items():
            try:
                step()
                outcomes[name] = "passed"
            except Exception as error:
                traceback.print_exc()
                outcomes[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            if not args.json:
                print(f"{name}: {outcomes[name]}", file=output, flush=True)
        os.chdir(args.readme.resolve().parent)
    if args.json:
        versions = {"python": platform.python_version()}
        for package in ("torch", "torchvision", "torchvision_layers"):
            module = sys.modules.get(package)
            versions[package] = getattr(module, "__version__", "")
        print(json.dumps({"versions": versions, "steps": outcomes}), file=output)
    return any(outcome != "passed" for outcome in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
