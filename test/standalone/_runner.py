"""Runs models from files while neither this package nor torchvision can be imported, also as a script of its own."""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

__all__ = ["run"]

BLOCKED = ("torchvision", "torchvision_layers", "torchao")


def run(jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the state and outputs of the model of each job, by its id.

    A job has the ``path`` of a file, the ``name`` of a function or class in it with its ``args`` and ``kwargs``, and a
    ``batch``. Jobs for quantizable models also have ``batches`` for calibration, or for training if ``is_qat``.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    with _blocked_imports(), warnings.catch_warnings():
        for id, job in jobs.items():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            module = _load(job["path"], f"alone_{len(outcomes)}")
            warnings.simplefilter("error")
            torch.manual_seed(0)
            model = getattr(module, job["name"])(*job.get("args", ()), **job.get("kwargs", {}))
            outcome = outcomes[id] = {"state": model.state_dict()}
            for mode in ("eval", "train"):
                torch.manual_seed(1)
                outcome[mode] = model.train(mode == "train")(job["batch"]).detach().clone()
            if "batches" in job:
                warnings.simplefilter("ignore")  # torch.ao raises many
                outcome["int8"] = _to_int8(module, model, job["batches"], job.get("is_qat", False))
    return outcomes


@contextmanager
def _blocked_imports() -> Iterator[None]:
    loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in BLOCKED}
    sys.modules.update(dict.fromkeys([*BLOCKED, *loaded]))  # importing what is None raises
    try:
        yield
    finally:
        for name in BLOCKED:
            del sys.modules[name]
        sys.modules.update(loaded)


def _load(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _to_int8(
    module: ModuleType, model: nn.Module, batches: list[Tensor], is_qat: bool
) -> tuple[list[str], Tensor, Tensor, Tensor, list[str]]:
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
        model.qconfig = tq.get_default_qat_qconfig("x86")
    else:  # as get_default_qconfig("x86"), with observers that take less time
        activation = tq.MinMaxObserver.with_args(reduce_range=True)
        model.qconfig = tq.QConfig(activation, tq.default_per_channel_weight_observer)
    (tq.prepare_qat if is_qat else tq.prepare)(model, inplace=True)
    with torch.set_grad_enabled(is_qat):
        for batch in batches:
            output = model(batch)
    if is_qat:
        output.sum().backward()
    tq.convert(model.eval(), inplace=True)
    kinds = [f"{type(part).__module__}.{type(part).__name__}" for part in model.modules()]
    with torch.no_grad():
        return keys, expected, after, model(batches[0]), kinds


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(run(torch.load(sys.argv[1], weights_only=False)), sys.argv[2])
