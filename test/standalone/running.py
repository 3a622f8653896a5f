"""Files run by an interpreter that has torch, but neither this package nor torchvision."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["run_alone"]

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
    for mode in (model.eval(), model.train()):
        torch.manual_seed(1)
        modes.append(mode(batch).detach().clone())  # in training a norm moves its statistics
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
