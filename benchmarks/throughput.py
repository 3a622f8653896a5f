"""Images per second of the reference models, torchvision's and timm's.

    python benchmarks/throughput.py --device cuda
    python benchmarks/throughput.py --only resnet18 --batch-size 2 --image-size 64

Each cell is ``inference / training`` in images per second: medians over many rounds, in which the three models take
turns. A training step is a forward and a backward pass under autocast in bfloat16, and a step of SGD. On a GPU,
inference is in float16, and runs in eager mode, compiled, and in a CUDA graph; training runs in eager mode and
compiled. On a CPU, inference is in float32 and eager. Images and weights are in channels_last.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from devices import MODES, clocks, existing, in_mode, timer
from devices import conditions as device_conditions
from layers import count, json_file, write
from measure import Call, conditions, interleave
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "references" / "classification"))
from models import MODELS, build_model

#: Names in timm of models that torchvision and the reference scripts have.
TIMM = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
    "vit_b_16": "vit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
}
NAMES = [name for name in TIMM if name in MODELS]
CLASSES = 1000


def build(name: str, device: torch.device) -> dict[str, nn.Module]:
    """Our model, torchvision's, and timm's if it is installed, with random weights in channels_last."""
    with torch.device(device):
        models = {"ours": build_model(name, CLASSES), "torchvision": getattr(torchvision.models, name)(weights=None)}
        try:
            import timm
        except ImportError:
            pass
        else:
            models["timm"] = timm.create_model(TIMM[name], pretrained=False)
    return {peer: model.to(memory_format=torch.channels_last) for peer, model in models.items()}


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train()

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, images: Tensor, mode: str, rounds: int) -> dict[str, tuple[float, float | None]]:
    """Images per second of each model, in inference and training; graphs are for inference only."""
    torch.compiler.reset()
    device, batch = images.device, len(images)

    def per_second(calls: Mapping[str, Call]) -> dict[str, float]:
        seconds = interleave(calls, rounds, timer=timer(device))
        return {peer: batch / median(own) for peer, own in seconds.items()}

    training: dict[str, float] = {}
    models = build(name, device)
    if mode != "graph":
        labels = torch.randint(CLASSES, (batch,)).to(device)
        training = per_second(
            {peer: in_mode(mode, model, lambda m: training_step(m, images, labels)) for peer, model in models.items()}
        )
    half = images.half() if device.type == "cuda" else images
    with torch.inference_mode():
        models = {peer: model.to(half.dtype).eval() for peer, model in build(name, device).items()}
        inference = per_second(
            {peer: in_mode(mode, model, lambda m: lambda: m(half)) for peer, model in models.items()}
        )
    return {peer: (inference[peer], training.get(peer)) for peer in models}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: eager on a CPU, all on a GPU")
    parser.add_argument("--batch-size", type=count, default=64, help="default: %(default)s")
    parser.add_argument("--image-size", type=count, default=224, help="default: %(default)s")
    parser.add_argument("--rounds", type=count, default=11, help="rounds for each model (default: %(default)s)")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args(arguments)
    try:
        device = existing(args.device)
    except ValueError as error:
        parser.error(str(error))
    is_gpu = device.type == "cuda"
    modes = args.modes or (MODES if is_gpu else ("eager",))
    if "graph" in modes and not is_gpu:
        parser.error("--modes: a graph needs a GPU, such as --device cuda")

    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # all sizes are fixed
    torch.manual_seed(0)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    about = {**conditions(), **device_conditions(device), "images": "×".join(map(str, shape)), "rounds": args.rounds}
    report: dict[str, Any] = {"conditions": about, "rows": []}
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    print("Each cell: images per second in inference / training")
    images = torch.randn(shape).to(device, memory_format=torch.channels_last)
    for name in args.only:
        for mode in modes:
            figures = measure(name, images, mode, args.rounds)
            cells = [
                f"{peer} {own:,.0f} / {'–' if step is None else f'{step:,.0f}'}"
                for peer, (own, step) in figures.items()
            ]
            print(f"{name}, {mode}: {'; '.join(cells)}", flush=True)
            report["rows"].append({"model": name, "mode": mode, "images per second": figures})
    if is_gpu:
        about["clocks after"] = clocks(device)
        print(f"clocks after: {about['clocks after']}")
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
