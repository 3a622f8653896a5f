"""Speed of int8 models in eager mode relative to torchvision's quantizable model of the same name.

    python benchmarks/quantized.py
    python benchmarks/quantized.py --only resnet50 --backends onednn --batches 8
    python benchmarks/quantized.py --compiled
    python benchmarks/quantized.py --rewritten

Both models have the same weights, are calibrated on the same batch of random images, and take turns on the same backend
of torch; the figure is the ratio of the medians. 1.00 is as fast as torchvision's model, and ``float`` is torchvision's
float model. With ``--compiled``, ``pt2e`` is our model from the other engine, compiled for each batch size, which takes
long. ``~`` marks a figure whose quartiles over the rounds differ by more than a tenth of it. ``dB`` is the
signal-to-quantization-noise ratio against the float model, for ours and torchvision's. With ``--rewritten``, our model
is torchvision's float model, whose tensor operations ``quantize`` turns into modules; torchvision wrote the quantizable
model by hand. Everything runs on the CPU. For the memory allocator see ``layers.py``.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from layers import as_json, count, json_file, text, write
from measure import Ratio, conditions, interleave, ratios
from torch import Tensor, nn

from torchvision_layers import quantized

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "references" / "classification"))
from models import build_model  # the reference models are scripts, not a package

#: Upper limits, relative to torchvision's time.
TARGETS = {"resnet18": 1.0, "resnet50": 0.85, "mobilenet_v2": 1.0, "mobilenet_v3_large": 0.9}
#: Upper limits for torchvision's own float models, rewritten by ``quantize``.
REWRITTEN_TARGETS = dict.fromkeys(("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "googlenet", "inception_v3"), 1.03)
BACKENDS = ("x86", "onednn")
SIZE = 224


class Models(NamedTuple):
    """The same model in three or four versions."""

    theirs: nn.Module
    ours: nn.Module
    float: nn.Module
    pt2e: nn.Module | None


@contextmanager
def running_on(backend: str) -> Iterator[None]:
    """Context with another torch engine and without torch's warning that eager mode quantization is deprecated."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deprecated")
            warnings.filterwarnings("ignore", message="must run observer")  # a block may not use its product
            yield
    finally:
        torch.backends.quantized.engine = engine


def image_size(name: str) -> int:
    return 299 if name == "inception_v3" else SIZE  # its auxiliary head takes no smaller images


def settle(model: nn.Module, size: int) -> None:
    """Sets the running statistics to those of random images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, size, size))
    model.eval()


def float_pair(name: str, rewritten: bool = False) -> tuple[nn.Module, nn.Module]:
    """Our model and torchvision's, with the same weights."""
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # the default is deprecated
    theirs = torchvision.models.get_model(name, weights=None, **options)
    settle(theirs, image_size(name))
    if rewritten:
        return theirs, theirs
    ours = build_model(name, 1000).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def by_torchvision(name: str, backend: str, batch: Tensor, weights: nn.Module) -> nn.Module:
    """Torchvision's quantizable model, quantized as torchvision does."""
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(f"quantized_{name}", weights=None, quantize=False, **options).eval()
    model.load_state_dict(weights.state_dict())
    with running_on(backend), torch.no_grad():
        model.fuse_model(is_qat=False)
        model.qconfig = torch.ao.quantization.get_default_qconfig(backend)
        torch.ao.quantization.prepare(model, inplace=True)
        model(batch)
        torch.ao.quantization.convert(model, inplace=True)
    return model


def build(name: str, backend: str, batch: Tensor, compiled: bool = False, rewritten: bool = False) -> Models:
    ours, in_float = float_pair(name, rewritten)
    theirs = by_torchvision(name, backend, batch, in_float)
    graph = quantized.quantize(ours, [batch], engine="pt2e") if compiled else None
    return Models(theirs, quantized.quantize(ours, [batch], backend=backend), in_float, graph)


def decibels(expected: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


def measure(models: Models, images: Tensor, rounds: int) -> dict[str, Ratio]:
    # Copies, because oneDNN caches kernels for the first input size.
    copies = {name: copy.deepcopy(model) for name, model in models._asdict().items() if name != "pt2e"}
    calls = {name: partial(model, images) for name, model in copies.items()}
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):  # freezing packs int8 weights
        if models.pt2e is not None:
            torch.compiler.reset()
            calls["pt2e"] = partial(torch.compile(models.pt2e, dynamic=False), images)
            calls["pt2e"]()
        return ratios(interleave(calls, rounds))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys([*TARGETS, *REWRITTEN_TARGETS]))
    parser.add_argument("--only", nargs="+", choices=names, help="models (default: all that have a target)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="default: both")
    parser.add_argument("--batches", nargs="+", type=count, default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="also write ratios and quartiles to this file")
    parser.add_argument("--rounds", type=count, default=21, help="rounds for each model (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="also measure the compiled model of the PT2E engine")
    parser.add_argument("--rewritten", action="store_true", help="measure torchvision's float models, rewritten")
    parser.add_argument("--threads", type=count, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(arguments)

    targets = REWRITTEN_TARGETS if args.rewritten else TARGETS
    for name in args.only or ():
        if name not in targets:
            parser.error(f"--only: {name} is measured {'without' if args.rewritten else 'with'} --rewritten")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report: dict[str, Any] = {"conditions": {**conditions(), "rounds": args.rounds}, "rows": []}
    print(*(f"{name}: {value}" for name, value in report["conditions"].items()), sep="\n")
    head = "".join(f"{title:>8}" for title in ("ours", "target", "float", "pt2e"))
    print(f"\n{'model':<20}{'backend':<9}{'images':>6}{head}{'dB ours':>10}{'theirs':>8}")
    for name in args.only or targets:
        for backend in args.backends:
            size = image_size(name)
            calibration = torch.randn(8, 3, size, size)
            models = build(name, backend, calibration, args.compiled, args.rewritten)
            with torch.inference_mode():
                expected, *outputs = (model(calibration) for model in (models.float, models.ours, models.theirs))
            noise = [decibels(expected, output) for output in outputs]
            snr = "{:>10.1f}{:>8.1f}".format(*noise)
            for batch in args.batches:
                with running_on(backend):
                    times = measure(models, torch.randn(batch, 3, size, size), args.rounds)
                cells = (text(times["ours"]), f"{targets[name]:.2f}", text(times["float"]), text(times.get("pt2e")))
                print(
                    f"{name:<20}{backend:<9}{batch:>6}{''.join(f'{cell:>8}' for cell in cells)}{snr}",
                    flush=True,
                )
                figures = {key: as_json(times.get(key)) for key in ("ours", "float", "pt2e")}
                about = {"model": name, "backend": backend, "images": batch, "target": targets[name], "decibels": noise}
                report["rows"].append({**about, **figures})
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
