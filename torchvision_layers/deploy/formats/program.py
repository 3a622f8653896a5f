"""A model as a program of torch.export for every size that the model accepts."""

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ..._utils.exporting import export_program
from ..._utils.inputs import Inputs
from .._inputs import accepts, resize
from .._subject import Subject

__all__ = ["export_subject"]


def export_subject(subject: Subject) -> ExportedProgram:
    """The program of a model for inputs of ``subject.input_shape``, without traces of the source code.

    Errors: ``RuntimeError`` if the model cannot be exported, or only for fewer sizes.
    """
    shape = subject.input_shape
    dims = {i: torch.export.Dim.AUTO for i, size in enumerate(shape) if size is None}
    program = export_program(
        subject.model, Inputs((_example_pair(subject),)), [dims], "format='torchscript' may take it. "
    )
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    (name,) = program.graph_signature.user_inputs
    for i, size in enumerate(placeholders[str(name)].meta["val"].shape):
        if shape[i] is None and is_concrete_int(size):
            raise RuntimeError(
                f"torch.export fixes dimension {i} of the input, although the model accepts other sizes: its forward "
                "uses that size as a Python number; use format='torchscript'"
            )
    for graph in [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]:
        for node in graph.nodes:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                node.meta.pop(key, None)  # they contain paths of this machine and take a third of the file
    return program


def _example_pair(subject: Subject) -> Tensor:
    """Two inputs to trace with, because torch.export treats a size of 1 as a constant, with larger images if possible.

    If features shrank to one pixel, Inductor would choose a memory layout that is valid for that size only.
    """
    pair = torch.cat([subject.example, subject.example])[:2].contiguous()
    for factor in (4, 2) if pair.dim() > 2 else ():
        size = [
            fixed if fixed is not None else factor * side
            for fixed, side in zip(subject.input_shape[2:], pair.shape[2:], strict=True)
        ]
        if max(size) <= 256 and accepts(subject.model, images := resize(pair, size)):
            return images
    return pair
