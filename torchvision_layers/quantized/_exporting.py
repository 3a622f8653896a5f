"""A model as one exported graph that takes batches and images of every size."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental import _config as shapes
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ._graph_nodes import CONVS, LINEAR, NORM, is_call, module_path
from ._kernels import make_padding_numeric

__all__ = ["every_size", "export", "fixed_sizes", "norm_hosts", "trace"]


@contextmanager
def every_size() -> Iterator[None]:
    """Lets ``torch.export`` treat sizes of one as any other.

    Without it, a program of images so small that features shrink to one pixel holds for such images only, and one of
    larger images not for them.
    """
    if not hasattr(shapes, "backed_size_oblivious"):  # on older versions of torch
        yield
        return
    with shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # torch adds it when it loads
        yield


def trace(model: nn.Module, pair: Tensor, sizes: dict[int, Any], otherwise: str = "") -> ExportedProgram:
    """The program of ``torch.export`` for one input, a batch of two, of which ``sizes`` says what may differ.

    Errors: ``RuntimeError`` where there is none, with what can be done ``otherwise``.
    """
    try:
        if not model.training:  # where batch norms refuse a single value, which the program would keep
            with every_size():
                program = torch.export.export(model, (pair,), dynamic_shapes=(sizes,))
            if _takes_one(program, pair):
                return program
        return torch.export.export(model, (pair,), dynamic_shapes=(sizes,))
    except Exception as error:  # torch raises many kinds here
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"model cannot be exported as one graph: {type(error).__name__}: {reason}\nA forward must not depend on "
            f"the values of tensors; {otherwise}torch.export.export(model, (input,)) gives the whole story."
        ) from error


def _takes_one(program: ExportedProgram, pair: Tensor) -> bool:
    """Whether a batch may be of one: to choose a layout, some convolutions ask for that, and a guard stays."""
    try:
        with torch.no_grad():
            program.module()(pair[:1])
    except AssertionError:
        return False
    return True


def export(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a copy of ``model`` in the mode that it is in, with the paths of the modules called in its ``meta``.

    Errors: ``TypeError`` for a model that returns no single tensor; ``RuntimeError`` where it cannot be exported, or
    only for one size of batch.
    """
    model = copy.deepcopy(model)
    called = set[str]()
    for path, module in model.named_modules():
        # Those that do nothing in eval leave no node behind.
        module.register_forward_pre_hook(partial(_note, called, path))
    make_padding_numeric(model)  # quantizers know nothing else
    # Exporting takes a size of one for a constant; two of a larger batch are enough.
    pair = torch.cat([example, example])[:2].detach() if example.shape[0] == 1 else example[:2].detach()
    sizes = dict.fromkeys(range(pair.dim()), torch.export.Dim.AUTO)
    program = trace(model, pair, sizes)
    returned = program.call_spec.out_spec
    if returned is not None and not returned.is_leaf():
        raise TypeError(f"model must return one tensor, it returns a {returned.type.__name__}")
    module = program.module()
    value = next(iter(module.graph.output_node().all_input_nodes), None)
    if value is None or not isinstance(value.meta.get("val"), Tensor):
        raise TypeError("model must return one tensor, it returns no tensor")
    module.meta["called"] = frozenset(called)
    if fixed_sizes(module)[0] is not None:
        raise RuntimeError("model cannot be exported for every batch: its forward depends on the size of the batch")
    return module


def _note(called: set[str], path: str, module: nn.Module, args: object) -> None:
    called.add(path)


def fixed_sizes(module: fx.GraphModule) -> tuple[int | None, ...]:
    """The sizes of the input that the graph holds for, ``None`` for any."""
    value = next(node.meta["val"] for node in module.graph.nodes if node.op == "placeholder")
    return tuple(int(size) if is_concrete_int(size) else None for size in value.shape)


def norm_hosts(module: fx.GraphModule) -> dict[str, str]:
    """Path of the convolution or projection before each batch norm, by the path of the latter."""
    found = {}
    for node in module.graph.nodes:
        if is_call(node, {NORM}) and is_call(node.args[0], CONVS | LINEAR):
            norm, host = module_path(node), module_path(node.args[0])
            if norm is not None and host is not None:
                found[norm] = host
    return found
