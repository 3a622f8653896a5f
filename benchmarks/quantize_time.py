"""Time of ``quantize`` itself relative to what torch and torchao take for the same batches.

    python benchmarks/quantize_time.py
    python benchmarks/quantize_time.py --only swin_t --engines pt2e --calibration 2x1

``pt2e`` is relative to an export with constant sizes, ``prepare_pt2e``, calibration and ``convert_pt2e`` of torchao,
and ``eager`` to ``prepare_fx``, calibration and ``convert_fx`` of torch, each with its default configuration for x86.
They take turns in one process; the figure is the ratio of the medians. The calibration set is eight batches of 16
images, or one batch of two, which shows the time that does not depend on the set. ``~`` marks a figure whose quartiles
over the rounds differ by more than a tenth of it. ``–`` marks a model that torch cannot quantize. Weights are random.
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torchvision
from layers import as_json, count, json_file, text, write
from measure import Ratio, conditions, interleave, ratios
from torch import Tensor, nn

from torchvision_layers import quantized

MODELS = ("resnet50", "mobilenet_v3_large", "densenet121", "swin_t", "vgg11_bn")
ENGINES = ("pt2e", "eager")
#: Upper limit of each figure.
TARGET = 1.5


class Calibration(NamedTuple):
    """A calibration set."""

    images: int
    batches: int

    def __str__(self) -> str:
        return f"{self.images}x{self.batches}"


SETS = (Calibration(2, 1), Calibration(16, 8))


def calibration(text: str) -> Calibration:
    """Parses ``16x8``: eight batches of 16 images."""
    return Calibration(*map(count, text.split("x")))


def by_torchao(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    graph = torch.export.export(model, (batches[0],)).module()
    _name_calls(graph)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    for batch in batches:
        prepared(batch)
    return convert_pt2e(prepared)


def _name_calls(graph: torch.fx.GraphModule) -> None:
    """Gives each call a source of its own: torchao rejects an activation that a model uses several times."""
    for node in graph.graph.nodes:
        for source in node.meta.get("source_fn_stack", [])[-1:]:
            node.meta["source_fn_stack"] = [(node.name, source[1])]


def by_fx(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (batches[0],))
    for batch in batches:
        prepared(batch)
    return convert_fx(prepared)


THEIRS: dict[str, Callable[[nn.Module, Sequence[Tensor]], nn.Module]] = {"pt2e": by_torchao, "eager": by_fx}


def measure(name: str, engine: str, calibration: Calibration, size: int, rounds: int) -> Ratio | None:
    """Our time relative to theirs; ``None`` if theirs fails."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    batches = [torch.randn(calibration.images, 3, size, size) for _ in range(calibration.batches)]
    calls = {
        "theirs": partial(THEIRS[engine], copy.deepcopy(model), batches),  # FX mode leaves attributes in the model
        "ours": partial(quantized.quantize, model, batches, engine=engine, backend="x86", progress=False),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            calls["theirs"]()
        except (RuntimeError, ValueError, torch.fx.proxy.TraceError):
            return None
        return ratios(interleave(calls, rounds))["ours"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MODELS), help="models of torchvision (default: %(default)s)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: both")
    parser.add_argument("--size", type=count, default=224, help="height and width (default: %(default)s)")
    parser.add_argument(
        "--calibration", nargs="+", type=calibration, default=list(SETS), help="IMAGESxBATCHES (default: 2x1 16x8)"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="also write ratios and quartiles to this file")
    parser.add_argument("--rounds", type=count, default=3, help="rounds for each model (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"conditions": {**conditions(), "rounds": args.rounds}, "rows": []}
    print(*(f"{name}: {value}" for name, value in report["conditions"].items()), sep="\n")
    print(f"\n{'model':<22}{'engine':<8}{'set':>8}{'ours':>8}{'target':>8}")
    for name, engine, chosen in product(args.only, args.engines, args.calibration):
        figure = measure(name, engine, chosen, args.size, args.rounds)
        print(f"{name:<22}{engine:<8}{chosen!s:>8}{text(figure):>8}{TARGET:>8.2f}", flush=True)
        report["rows"].append(
            {"model": name, "engine": engine, **chosen._asdict(), "target": TARGET, "ours": as_json(figure)}
        )
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
