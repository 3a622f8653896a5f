"""Speed of whole models in each deployment runtime, next to torchvision's models of the same name.

    python benchmarks/deploy.py
    python benchmarks/deploy.py --only resnet18 mobilenet_v3_large --runtimes folded onnx onnx-qdq --images 1

Each cell is ``ours / torchvision's``: the time of a forward pass relative to torchvision's unmodified model in eager
mode and NCHW. Times are medians over rounds in which the three take turns. Each runtime has its own process, because
thread pools disturb each other: onnxruntime's threads spin while they wait for work. Both models have the same random
weights and batch statistics of noise. Int8 is calibrated on eight images. Float formats are exported from the folded
model.

``ours`` is torchvision's model if the reference scripts do not build it. For torchvision, ``folded`` is our fold of its
model, ``lowered`` our lowered model, and ``int8 eager`` is its quantizable model, if it has one, on the backend onednn
like ours. In all other runtimes its model is converted like ours.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from layers import count, text
from measure import Ratio, conditions, interleave, ratios
from quantized import SIZE, TARGETS, by_torchvision, float_pair, running_on
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

#: Models of torchvision that the reference scripts do not build.
OTHERS = ("densenet121", "vit_b_32")
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", *OTHERS)
BACKEND = "onednn"

Call = Callable[[Tensor], Tensor]


def in_channels_last(model: nn.Module) -> Call:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: model(x.to(memory_format=torch.channels_last))


def compiled(model: nn.Module) -> Call:
    return torch.compile(model, dynamic=False)


def through_file(model: nn.Module, batch: Tensor, format: str) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("model.pt2" if format == "aoti" else "model")
        deploy.export(model, batch, path, format=format)
        return deploy.load(path)


def pt2e(model: nn.Module, batch: Tensor, backend: str = "x86") -> nn.Module:
    return quantized.quantize(deploy.fold(model), [batch], engine="pt2e", backend=backend)


#: Functions from a float model and a batch to the callable that is measured.
RUNTIMES: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "eager": lambda model, batch: model,
    "channels_last": lambda model, batch: in_channels_last(model),
    "folded": lambda model, batch: deploy.fold(model),
    "lowered": lambda model, batch: deploy.lower(model, batch[:1]),
    "compiled": lambda model, batch: compiled(deploy.fold(model)),
    "aoti": lambda model, batch: through_file(deploy.fold(model), batch, "aoti"),
    "onnx": lambda model, batch: through_file(deploy.fold(model), batch, "onnx"),
    "int8 eager": lambda model, batch: quantized.quantize(model, [batch], backend=BACKEND),
    "int8 lowered": lambda model, batch: deploy.lower(pt2e(model, batch), batch[:1]),
    "int8 compiled": lambda model, batch: compiled(pt2e(model, batch)),
    "onnx-qdq": lambda model, batch: through_file(pt2e(model, batch, "onnxruntime"), batch, "onnx-qdq"),
}


def measure(name: str, runtime: str, images: int, rounds: int) -> dict[str, Ratio]:
    """Measures one model in one runtime, in this process."""
    ours, theirs = float_pair(name, rewritten=name in OTHERS)
    batch, input = torch.randn(8, 3, SIZE, SIZE), torch.randn(images, 3, SIZE, SIZE)
    # Freezing packs the weights of compiled models.
    with torch.no_grad(), torch._inductor.config.patch(freezing=True), running_on(BACKEND):
        calls: dict[str, Call] = {"torchvision, eager": theirs, "ours": RUNTIMES[runtime](ours, batch)}
        if runtime != "int8 eager":
            calls["torchvision"] = RUNTIMES[runtime](theirs, batch)
        elif name in TARGETS:  # torchvision has a quantizable version
            calls["torchvision"] = by_torchvision(name, BACKEND, batch, theirs)
        return ratios(interleave({key: partial(call, input) for key, call in calls.items()}, rounds))


def measure_in_subprocess(name: str, runtime: str, args: argparse.Namespace) -> dict[str, Ratio]:
    """Measures one model in one runtime, in a separate process."""
    command = [sys.executable, __file__, "--only", name, "--runtimes", runtime, "--images", str(args.images), "--alone"]
    command += ["--rounds", str(args.rounds), "--threads", str(args.threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{name} in {runtime}: {result.stderr.strip()}")
    return {key: Ratio(*value) for key, value in json.loads(result.stdout.splitlines()[-1]).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all)")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="default: all")
    parser.add_argument("--images", type=count, default=1, help="batch size (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=11, help="rounds for each candidate (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="measure one model in this process and print JSON")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.alone:
        print(json.dumps(measure(args.only[0], args.runtimes[0], args.images, args.rounds)))
        return
    print(*(f"{name}: {value}" for name, value in {**conditions(), "rounds": args.rounds}.items()), sep="\n")
    print("Each cell: ours / torchvision's, relative to torchvision's eager model")
    print(f"\n{'':<20}" + "".join(f"{runtime:>16}" for runtime in args.runtimes))
    for name in args.only:
        print(f"{name:<20}", end="", flush=True)
        for runtime in args.runtimes:
            times = measure_in_subprocess(name, runtime, args)
            print(f"{text(times['ours']):>8} /{text(times.get('torchvision')):>6}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
