"""Models as programs of ``torch.export`` that accept every batch and image size the model accepts."""

import inspect
import io
import itertools
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ShapesCollection
from torch.fx.experimental import _config as shapes

from .data_reads import DataReads
from .inputs import Inputs, accepts
from .modules import copy_module
from .safe_names import safe_names
from .source_lines import failing_line
from .structure import flatten
from .symbolic_grids import SymbolicGrids
from .symbolic_lengths import symbolic_lengths

__all__ = [
    "any_size",
    "as_module",
    "drop_guards",
    "export_program",
    "gives_results_of",
    "held_guards",
    "holds",
    "kept_tensors_allowed",
    "prime_from",
    "without_partial_graph",
]


@contextmanager
def any_size() -> Iterator[None]:
    """Lets ``torch.export`` treat a size of one like any other size.

    By default it specializes on ones, so a program traced with images so small that features shrink to one pixel
    accepts only such images, and a program traced with larger images rejects them.
    """
    if not hasattr(shapes, "backed_size_oblivious"):  # older versions of torch
        yield
        return
    with shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # torch adds it when it loads
        yield


def as_module(model: nn.Module) -> nn.Module:
    """``model``, or for a graph a module with the same ``forward``: torch.export runs a graph without its hooks."""
    if not isinstance(model, fx.GraphModule):
        return model
    clone: nn.Module = object.__new__(type(type(model).__name__, (nn.Module,), {"forward": type(model).forward}))
    clone.__dict__ = dict(vars(model))
    return clone


def export_program(
    model: nn.Module,
    inputs: Inputs,
    sizes: Sequence[dict[int, Any]],
    advice: str = "",
    *,
    drops_batch_guards: bool = False,
    runs_single: bool = True,
) -> ExportedProgram:
    """Exports ``model`` for ``inputs``, a batch of two; ``sizes`` holds the dynamic dimensions of each tensor.

    A program that rejects a single image is exported again, which takes as long as the first time. If that does not
    help, it loses the guards that do, provided that its result for a single image is right. With
    ``drops_batch_guards`` it loses them at once, to save time; the symbols of the program still exclude one image. In
    training it then loses them without a comparison, which the caller must make, unless the model, such as one with a
    batch norm, refuses a single image as well. With ``runs_single=False``, or for inputs that cannot be cut, the
    program is not run at all.

    Errors: ``RuntimeError`` with ``advice``, and with the line of the model that failed, if the model cannot be
    exported.
    """
    model, runs_single = as_module(model), runs_single and inputs.can_be_cut()
    collection = ShapesCollection()
    for tensor, dims in zip(inputs.tensors(), sizes, strict=True):
        collection[tensor] = dims
    contexts: list[Callable[[], AbstractContextManager[None]]] = [any_size, nullcontext]
    # In training, batch norms reject a single value and leave that guard in the program; a batch of two is never one.
    if model.training or not any(dim > 0 for dims in sizes for dim in dims):
        contexts = [nullcontext]
    try:
        dynamic_shapes = collection.dynamic_shapes(model, inputs.args, inputs.kwargs)
        programs: list[ExportedProgram] = []
        single = _single_image(inputs, sizes)
        takes_single = model.training and drops_batch_guards and runs_single and accepts(copy_module(model), single)
        for context in contexts:
            # The cache of fake tensors compares symbolic sizes, which takes longer than what it saves.
            uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
            with (
                context(),
                without_partial_graph(),
                kept_tensors_allowed(),
                symbolic_lengths(model),
                SymbolicGrids(),
                uncached,
                safe_names(model),
            ):
                programs.append(torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=dynamic_shapes))
            if len(contexts) == 1 or not runs_single:
                if takes_single:  # nothing is compared: dropout in training draws other numbers in each run
                    _drop_broken_guards(programs[0], model, [single])
                return programs[0]
            if _accepts(programs[-1], single) or (drops_batch_guards and drop_guards(programs[-1], model, [single])):
                return programs[-1]
        return programs[0] if drop_guards(programs[0], model, [single]) else programs[1]
    except Exception as error:  # torch raises many types here
        raise RuntimeError(
            f"model cannot be exported as one graph: {_reason(error, model, inputs)}; {advice}"
            "torch.export.export shows the full error"
        ) from error


@contextmanager
def kept_tensors_allowed() -> Iterator[None]:
    """Ignores torch's warning about a ``forward`` that keeps a tensor as an attribute, which a graph need not do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
        yield


@contextmanager
def without_partial_graph() -> Iterator[None]:
    """Keeps torch from printing the graph of an export that fails, and tracebacks of simplifications that it tries."""
    text, log = io.StringIO(), logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    if level == logging.NOTSET:  # unless TORCH_LOGS asks for more
        log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(text):
            yield
    finally:
        log.setLevel(level)
    sys.stderr.write(text.getvalue())


def _reason(error: Exception, model: nn.Module, inputs: Inputs) -> str:
    line, is_own = failing_line(error, model)
    if "fake tensor in the exported program" in str(error):  # torch finds it after the forward has ended
        probe = copy_module(model)
        with DataReads() as reads:
            accepts(probe, inputs)
        line = reads.line or line
        return f"{line} uses the memory of a tensor by .data, which torch.export cannot follow; use .detach()"
    if "data-dependent" in str(error) or "DataDependent" in type(error).__name__:
        return f"{line} uses the value of a tensor as a Python number; use torch.where, or move it out of the model"
    if is_own:
        return f"{line} raises {type(error).__name__}: {error}"
    return f"torch.export raises {type(error).__name__} in {line}"


def _single_image(inputs: Inputs, sizes: Sequence[dict[int, Any]]) -> Inputs:
    dynamic = [bool(0 in dims) for dims in sizes]
    batch = next((len(tensor) for tensor, is_dynamic in zip(inputs.tensors(), dynamic, strict=True) if is_dynamic), 0)
    remaining = iter(dynamic)
    return inputs.map(lambda tensor: tensor[:1] if next(remaining) and len(tensor) == batch else tensor)


def _accepts(program: ExportedProgram, single: Inputs) -> bool:
    """Whether the program runs for a single image: some operators leave a guard because they choose a layout by it."""
    with torch.no_grad():
        try:
            single.map(torch.clone).run(program.module())
        except AssertionError:
            return False
    return True


def held_guards(program: ExportedProgram, model: nn.Module, inputs: Inputs) -> list[bool]:
    """Whether each guard of a program holds for these inputs."""
    arguments = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments
    names = {"L": arguments, "torch": torch, "math": math}
    return [holds(partial(eval, code, names)) for code in program._guards_code]


def drop_guards(program: ExportedProgram, model: nn.Module, compared: Sequence[Inputs]) -> bool:
    """Drops the guards that inputs break, if the program then gives the results of ``model`` for all of these inputs.

    Returns whether it does; otherwise the guards stay.
    """
    guards = program._guards_code
    _drop_broken_guards(program, model, compared)
    if all(gives_results_of(program, model, inputs) for inputs in compared):
        return True
    program._guards_code = guards
    return False


def _drop_broken_guards(program: ExportedProgram, model: nn.Module, compared: Sequence[Inputs]) -> None:
    held = [held_guards(program, model, inputs) for inputs in compared]
    program._guards_code = [guard for guard, *results in zip(program._guards_code, *held, strict=True) if all(results)]


def gives_results_of(program: ExportedProgram, model: nn.Module, inputs: Inputs) -> bool:
    """Whether a program runs and gives the results of ``model``."""
    with torch.no_grad():
        try:
            outputs = flatten(inputs.map(torch.clone).run(program.module()))[0]
            expected = flatten(inputs.map(torch.clone).run(model))[0]
        except Exception:  # operators of the graph, or a forward, may not take these sizes
            return False
    return len(outputs) == len(expected) and all(map(_is_close, outputs, expected))


def prime_from(size: int, skipped: int) -> int:
    """The smallest prime of at least ``size``, after ``skipped`` smaller ones."""
    primes = (n for n in itertools.count(max(size, 2)) if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)))
    return next(itertools.islice(primes, skipped, None))


def holds(condition: Callable[[], object]) -> bool:
    """Whether a condition on sizes is true; one that divides by zero, as the remainder of a view may, is not."""
    try:
        return bool(condition())
    except ZeroDivisionError:
        return False


def _is_close(output: Tensor, expected: Tensor) -> bool:
    limit = 1e-3 * float(expected.abs().max()) if expected.numel() else 0.0
    return output.shape == expected.shape and torch.allclose(output, expected, rtol=0, atol=limit)
