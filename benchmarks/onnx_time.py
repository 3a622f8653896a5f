"""Time of our int8 ONNX files relative to those of onnxruntime's own static quantizer, in onnxruntime.

    python benchmarks/onnx_time.py
    python benchmarks/onnx_time.py --only resnet50 --size 64 --operators

Both files of a model are quantized for the same batch of noise and take turns in one process; the figure is the ratio
of the medians. With one thread, it counts the processor time, which other processes hardly change. ``~`` marks a figure
whose quartiles over the rounds differ by more than a tenth of it. ``--operators`` also counts the operators that
onnxruntime runs after it has optimized each file. Weights are random.
"""

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from layers import as_json, count, json_file, text, write
from measure import Ratio, conditions, interleave, ratios, wall_seconds
from quantizers import session, write_by_onnxruntime
from torch import nn
from zoo.models import ZOO, build

from torchvision_layers import deploy, quantized

MODELS = {
    name: name.removeprefix("tf_")
    for name in ("resnet50", "mobilenet_v3_large", "tf_efficientnet_lite0", "densenet121", "convnext_tiny", "vit_b_32")
}
#: Upper limit of each figure.
TARGET = 1.05


def write_ours(model: nn.Module, batch: torch.Tensor, path: Path) -> None:
    options = {"engine": "pt2e", "backend": "onnxruntime", "dynamic_sizes": False}
    int8 = quantized.quantize(deploy.fold(model, batch), [batch], progress=False, **options)
    deploy.export(int8, batch, path, format="onnx-qdq")


def measure(name: str, size: int, images: int, rounds: int) -> tuple[Ratio, dict[str, Counter[str]]]:
    """Our time relative to theirs, and the operators of both files."""
    import onnx

    entry = ZOO[name]
    subject = build(entry, entry.size if entry.is_fixed else size, 2)
    calls, operators = {}, {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = {file: Path(folder) / f"{file}.onnx" for file in ("theirs", "ours")}
        write_by_onnxruntime(subject.network, [subject.batch], "MinMax", paths["theirs"])
        write_ours(subject.network, subject.batch, paths["ours"])
        for file, path in paths.items():
            optimized = f"{path}.optimized"
            loaded = session(str(path), optimized)
            operators[file] = Counter(node.op_type for node in onnx.load(optimized).graph.node)
            input = subject.batch[:1].repeat(images, 1, 1, 1).numpy()
            calls[file] = partial(loaded.run, None, {loaded.get_inputs()[0].name: input})
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    return ratios(interleave(calls, rounds, timer=partial(wall_seconds, clock=clock)))["ours"], operators


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all)")
    parser.add_argument("--size", type=count, default=224, help="height and width (default: %(default)s)")
    parser.add_argument("--images", type=count, default=1, help="images in a call (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=21, help="rounds for each model (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--operators", action="store_true", help="also print the operators that run")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="also write ratios and quartiles to this file")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"conditions": {**conditions(), "rounds": args.rounds}, "rows": []}
    print(*(f"{name}: {value}" for name, value in report["conditions"].items()), sep="\n")
    print(f"\n{'model':<22}{'ours':>8}{'target':>8}")
    for name in args.only:
        figure, operators = measure(name, args.size, args.images, args.rounds)
        print(f"{MODELS[name]:<22}{text(figure):>8}{TARGET:>8.2f}", flush=True)
        for file, counts in operators.items() if args.operators else ():
            print(f"  {file:<8}" + ", ".join(f"{n} {operator}" for operator, n in counts.most_common()), flush=True)
        report["rows"].append({"model": MODELS[name], "target": TARGET, "ours": as_json(figure)})
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
