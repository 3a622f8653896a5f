"""Models and layers to write to files, and an interpreter with torch that has neither this package nor torchvision."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchvision_layers import nn as tnn

from ..conformance.specs import SPECS

__all__ = [
    "LAYERS_WITH_TWINS",
    "MODELS",
    "MODELS_AT",
    "ROOT",
    "WITHOUT_TWINS",
    "WITH_TWINS",
    "batch_of",
    "reference_to",
    "run_alone",
    "samples_of",
    "size_of",
]

ROOT = Path(__file__).parent.parent.parent
MODELS_AT = ROOT / "references" / "classification" / "models"

#: The file of each model.
MODELS = {
    "convnext_tiny": "convnext",
    "efficientnet_b0": "efficientnet",
    "mobilenet_v1": "mobilenet_v1",
    "mobilenet_v2": "mobilenet",
    "mobilenet_v2_coord": "mobilenet",
    "mobilenet_v2_half": "mobilenet",
    "mobilenet_v3_large": "mobilenet_v3",
    "mobilenet_v3_small": "mobilenet_v3",
    "nf_resnet50": "nf_resnet",
    "resnet18": "resnet",
    "resnet26_sasa": "sasa_resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "resnet50_gn_ws": "resnet",
    "resnet101": "resnet",
    "resnet152": "resnet",
    "resnext50_32x4d": "resnet",
    "se_resnet18": "resnet",
    "se_resnet50": "resnet",
    "wide_resnet50_2": "resnet",
}
#: Models of which a layer has no twin: it is folded first.
WITHOUT_TWINS = {
    "mobilenet_v2_coord": "CoordConv2d",
    "nf_resnet50": "SWSConv2d",
    "resnet26_sasa": "MultiHeadedSpatialAttention",
    "resnet50_gn_ws": "WSConv2d",
}
WITH_TWINS = [name for name in MODELS if name not in WITHOUT_TWINS]
LAYERS_WITH_TWINS = {spec.name: spec for spec in SPECS if spec.twin is not None and spec.name in tnn.__all__}


def size_of(name: str) -> dict[str, Any]:
    """Arguments by which a model becomes small."""
    return {"num_classes": 5, "width_mult": 0.25, "depth_mult": 0.1 if name in ("resnet101", "resnet152") else 0.3}


def reference_to(name: str) -> str:
    """What the command takes for a model."""
    return f"{MODELS_AT / MODELS[name]}.py:{name}"


def samples_of(name: str) -> dict[str, Any]:
    """The samples of a stable layer whose arguments another interpreter can read, by id."""
    spec = next(spec for spec in SPECS if spec.name == name)
    return {sample.id: sample for sample in spec.samples if _is_plain(sample.kwargs)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, partial):
        return _is_plain([value.func, value.args, value.keywords])
    parts = [value, *value.modules()] if isinstance(value, nn.Module) else [value]
    named = [part if isinstance(part, type) else type(part) for part in parts]
    known = all(kind.__module__.split(".")[0] in ("builtins", "torch") for kind in named)
    return known and not (callable(value) and not isinstance(value, (type, nn.Module)))


def batch_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


RUN = """
import importlib.util, sys, warnings
blocked = ("torchvision", "torchvision_layers", "torchao")
for name in blocked:
    sys.modules[name] = None  # from here on, importing it raises
import torch

torch.set_num_threads(1)

def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def results(module, name, args, kwargs, batch):
    torch.manual_seed(0)
    model = getattr(module, name)(*args, **kwargs)
    modes = []
    for training in (False, True):
        torch.manual_seed(1)
        modes.append(model.train(training)(batch).detach().clone())
    return model, modes

def to_int8(module, model, batches, is_qat):
    import torch.ao.quantization as taoq
    model = module.QuantizableModel(model.train(is_qat))
    keys = [key.removeprefix("model.") for key in model.state_dict()]
    with torch.no_grad():
        expected = model.eval()(batches[0])
    model.train(is_qat)
    model.fuse_model()
    fused = str(model)
    model.fuse_model()
    assert str(model) == fused, "a second call changed something"
    with torch.no_grad():
        after = model.eval()(batches[0])
    model.train(is_qat)
    if is_qat:
        model.qconfig = taoq.get_default_qat_qconfig("x86")
    else:  # as get_default_qconfig("x86"), with observers that take less time
        range = taoq.MinMaxObserver.with_args(reduce_range=True)
        model.qconfig = taoq.QConfig(range, taoq.default_per_channel_weight_observer)
    (taoq.prepare_qat if is_qat else taoq.prepare)(model, inplace=True)
    with torch.set_grad_enabled(is_qat):
        for batch in batches:
            output = model(batch)
    if is_qat:
        output.sum().backward()
    taoq.convert(model.eval(), inplace=True)
    kinds = [f"{type(part).__module__}.{type(part).__name__}" for part in model.modules()]
    with torch.no_grad():
        return keys, expected, after, model(batches[0]), kinds

jobs = torch.load(sys.argv[1], weights_only=False)
found = {}
for id, job in jobs.items():
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    module = load(job["path"], "alone_" + str(len(found)))
    warnings.simplefilter("error")
    model, modes = results(module, job["name"], job.get("args", ()), job.get("kwargs", {}), job["batch"])
    found[id] = {"state": model.state_dict(), "eval": modes[0], "train": modes[1]}
    if "batches" in job:
        warnings.simplefilter("ignore")  # torch.ao has many
        found[id]["int8"] = to_int8(module, model, job["batches"], job.get("is_qat", False))
assert not [m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m] is not None]
torch.save(found, sys.argv[2])
"""


def run_alone(jobs: dict[str, dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """What models of files give, by the ids of the jobs.

    A job has the ``path`` of a file, the ``name`` of what to call there, its ``args`` and ``kwargs``, a ``batch``, and
    for a quantizable one perhaps ``batches`` to calibrate on, or with ``is_qat`` to train on.
    """
    torch.save(jobs, folder / "jobs.pt")
    command = [sys.executable, "-c", RUN]
    result = subprocess.run(
        [*command, str(folder / "jobs.pt"), str(folder / "results.pt")], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, dict[str, Any]] = torch.load(folder / "results.pt", weights_only=False)
    return found
