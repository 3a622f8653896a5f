"""Runs one column of one model in a process of its own, with a time limit."""

import importlib
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

__all__ = ["Result", "run_alone"]

#: Imported once, by the server that all processes are forked from, because that takes longer than many columns.
PRELOADED = (
    *("timm", "torch._dynamo", "torch.export", "torch.ao.quantization.quantize_fx", "onnxruntime", "onnxscript"),
    *("torchao.quantization.pt2e.quantize_pt2e", "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"),
    "benchmarks.zoo.columns",
)

#: Figures or ``{"reason": ...}``, and the traceback of a failure.
Result = tuple[dict[str, Any], str]


def run_alone(name: str, column: str, size: int, limit: float) -> Result:
    """The figures of a column, or the reason why there are none."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, name, column, size))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return {"reason": f"took more than {limit:g} seconds"}, ""
        result = receiver.recv()
        process.join(10)
        return result
    except EOFError:
        process.join()
        return {"reason": f"the process ended with exit code {process.exitcode}"}, ""
    finally:
        process.kill()
        process.join()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _child(sender: Connection, name: str, column: str, size: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # exporters and progress bars print
        os.dup2(quiet, stream)
    torch.set_num_threads(1)
    columns, models = (importlib.import_module(f"benchmarks.zoo.{module}") for module in ("columns", "models"))
    try:
        figures = columns.COLUMNS[column](models.build(models.ZOO[name], size, columns.images(column)))
    except BaseException as error:  # a failure of any kind is a figure of the zoo
        lines = str(error).strip().splitlines() or [""]
        figures = {"reason": f"{type(error).__name__}: {lines[0]}"}
        sender.send((figures, traceback.format_exc()))
    else:
        sender.send((figures, ""))
