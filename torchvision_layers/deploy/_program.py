"""A model as a program of torch.export, for every size that the model takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from .._utils import exporting
from ._comparing import resized, takes

__all__ = ["export_program"]


def export_program(model: nn.Module, example: Tensor, sizes: Sequence[int | None]) -> ExportedProgram:
    """The program of ``model`` for inputs of ``sizes``, ``None`` for any, without traces of the sources.

    Errors: ``RuntimeError`` where it cannot be exported, or only for fewer sizes, with the dimension that is fixed.
    """
    pair = _pair(model, example, sizes)
    dims = {i: torch.export.Dim.AUTO for i, size in enumerate(sizes) if size is None}
    program = exporting.export_program(model, pair, dims, "format='torchscript' may take it. ")
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    (name,) = program.graph_signature.user_inputs
    for i, size in enumerate(placeholders[str(name)].meta["val"].shape):
        if sizes[i] is None and is_concrete_int(size):
            raise RuntimeError(
                f"torch.export fixes dimension {i} of the input, though the model takes other sizes: its forward "
                "computes with that size as a number of Python's; use format='torchscript'"
            )
    for graph in [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]:
        for node in graph.nodes:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                node.meta.pop(key, None)  # paths of the machine that exports, and a third of the file
    return program


def _pair(model: nn.Module, example: Tensor, sizes: Sequence[int | None]) -> Tensor:
    """What to trace with: two inputs, as exporting takes a size of one for a constant, and images that are not small.

    Where features shrink to one pixel, Inductor would lay out memory in an order that holds for that only.
    """
    pair = torch.cat([example, example])[:2].contiguous()
    for factor in (4, 2) if example.dim() > 2 else ():
        larger = [size if sizes[i + 2] is not None else factor * size for i, size in enumerate(pair.shape[2:])]
        if max(larger) <= 256 and takes(model, images := resized(pair, larger)):
            return images
    return pair
