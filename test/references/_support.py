"""Pictures to train on, runs of train.py, and reference models beside torchvision's of the same name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "references" / "classification"))
from models import MODELS, build_model  # the scripts import each other by bare names

SCRIPTS = Path(sys.path[0])
SHARED = sorted(name for name in MODELS if hasattr(torchvision.models, name))


def small_convnext() -> nn.Module:
    stages = [CNBlockConfig(12, 24, 1), CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 3), CNBlockConfig(96, None, 1)]
    return ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=10)


def small_efficientnet() -> nn.Module:
    stages, last_channels = _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.5)
    return EfficientNet(stages, dropout=0.2, last_channel=last_channels, num_classes=10)


def small_mobilenet_v2() -> nn.Module:
    rows = [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 2, 2], [6, 64, 2, 2], [6, 96, 2, 1], [6, 160, 2, 2], [6, 320, 1, 1]]
    return torchvision.models.MobileNetV2(num_classes=10, width_mult=0.25, inverted_residual_setting=rows)


QUARTER = {"depth_mult": 0.25}
#: Multipliers of ours, and torchvision's model of that size. Its ResNets have one width, its MobileNetV3 one depth.
SMALL: dict[str, tuple[dict[str, float], Callable[[], nn.Module]]] = {
    "convnext_tiny": ({"width_mult": 0.125, "depth_mult": 1 / 3}, small_convnext),
    "efficientnet_b0": ({"width_mult": 0.25, "depth_mult": 0.5}, small_efficientnet),
    "mobilenet_v2": ({"width_mult": 0.25, "depth_mult": 0.5}, small_mobilenet_v2),
    **{
        name: ({"width_mult": 0.25}, partial(getattr(torchvision.models, name), num_classes=10, width_mult=0.25))
        for name in ("mobilenet_v3_large", "mobilenet_v3_small")
    },
    "resnet18": (QUARTER, partial(ResNet, BasicBlock, [1, 1, 1, 1], 10)),
    "resnet34": (QUARTER, partial(ResNet, BasicBlock, [1, 1, 2, 1], 10)),
    "resnet50": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 2, 1], 10)),
    "resnet101": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 6, 1], 10)),
    "resnet152": (QUARTER, partial(ResNet, Bottleneck, [1, 2, 9, 1], 10)),
    "resnext50_32x4d": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 2, 1], 10, groups=32, width_per_group=4)),
    "wide_resnet50_2": (QUARTER, partial(ResNet, Bottleneck, [1, 1, 2, 1], 10, width_per_group=128)),
}


def pair(name: str, is_small: bool) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    """What makes our model of that name, and what makes torchvision's."""
    if is_small:
        arguments, theirs = SMALL[name]
        return partial(build_model, name, 10, **arguments), theirs
    return partial(build_model, name, 10), partial(getattr(torchvision.models, name), num_classes=10)


def fill(model: nn.Module) -> Any:
    """Numbers that no constructor gives, and with which an image reaches the output."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(7)
            elif key.endswith(("bias", "running_mean")):
                value.uniform_(-0.3, 0.3)
            elif value.dim() <= 1 or key.endswith("layer_scale"):
                value.uniform_(0.7, 1.3)
            else:
                nn.init.kaiming_normal_(value)
    return model


def draw_pictures(folder: Path, count: int) -> None:
    """Fills a folder with so many noisy pictures; what is in one depends on the folder's name and its number."""
    folder.mkdir(parents=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 * sum(folder.name.encode()) + number)
        pixels = torch.randint(0, 60, (40, 48, 3), generator=generator)
        pixels[..., len(folder.name) % 3] += 150  # "red" and "blue" differ in the channel that is bright
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{folder.name}{number}.png")


class Host:
    """Runs of train.py in processes of their own, which ``_host.py`` forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("_host.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *runs: dict) -> list[tuple[int, float]]:
        """The exit status, and the seconds of computing, of each of the runs, which start together."""
        self.process.stdin.write(f"{json.dumps(runs)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
