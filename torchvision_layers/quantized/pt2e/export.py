"""A model as one exported graph that accepts batches and images of every size."""

import copy
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ..._utils.exporting import export_program
from ..._utils.modules import make_padding_numeric
from .nodes import BATCH_NORM, CONVS, LINEAR, is_call, module_path
from .sizes import SizeLimit, export_static

__all__ = ["ExportedModel", "export"]


@dataclass(frozen=True)
class ExportedModel:
    """The graph of a model, and what exporting knows of the model's modules."""

    graph_module: fx.GraphModule
    #: Paths of the modules that the forward calls.
    called_paths: frozenset[str]
    #: For each batch norm by path, the path of the convolution or linear layer before it.
    norm_inputs: dict[str, str]
    #: The sizes of the input that the graph requires; ``None`` for any size.
    input_sizes: tuple[int | None, ...]


def export(model: nn.Module, example: Tensor, dynamic_sizes: bool | None = None) -> ExportedModel:
    """Exports a copy of ``model`` in its current mode.

    Args:
        model: the model.
        example: a batch.
        dynamic_sizes: ``True`` for a graph that takes images of every size that the model takes, ``False`` for one that
            takes those of the example. ``None`` fixes the size, with a warning, if an export for all would take
            minutes.

    Errors: ``TypeError`` if the model does not return a single tensor; ``RuntimeError`` if it cannot be exported, or
    only for one batch size.
    """
    model = copy.deepcopy(model)
    called_paths = set[str]()
    for path, module in model.named_modules():
        # Modules that do nothing in eval mode leave no node behind, so the nodes do not show that they are called.
        module.register_forward_pre_hook(partial(_record, called_paths, path))
    make_padding_numeric(model)  # quantizers know no other padding
    # torch.export specializes on a size of one; two images are enough.
    pair = torch.cat([example, example])[:2].detach() if example.shape[0] == 1 else example[:2].detach()
    module, input_sizes = _export(model, pair, dynamic_sizes)
    value = next(iter(module.graph.output_node().all_input_nodes), None)
    if value is None or not isinstance(value.meta.get("val"), Tensor):
        raise TypeError("model must return one tensor, it returns no tensor")
    return ExportedModel(module, frozenset(called_paths), _norm_inputs(module), input_sizes)


def _export(
    model: nn.Module, pair: Tensor, dynamic_sizes: bool | None
) -> tuple[fx.GraphModule, tuple[int | None, ...]]:
    """The graph, and the sizes of the input that it requires."""
    static = None if model.training or dynamic_sizes is False else export_static(model, [pair])
    if static is not None:
        return static.graph_module, static.input_sizes[0]
    program = _export_symbolic(model, pair, dynamic_sizes)
    output = program.call_spec.out_spec
    if output is not None and not output.is_leaf():
        raise TypeError(f"model must return one tensor, it returns a {output.type.__name__}")
    module = program.module()
    input_sizes = _input_sizes(module)
    if input_sizes[0] is not None:
        raise RuntimeError("model cannot be exported for every batch: its forward depends on the size of the batch")
    return module, input_sizes


def _export_symbolic(model: nn.Module, pair: Tensor, dynamic_sizes: bool | None) -> ExportedProgram:
    auto, limit = torch.export.Dim.AUTO, SizeLimit()
    if dynamic_sizes is not False:
        try:
            with limit if dynamic_sizes is None else nullcontext():
                return export_program(model, pair, dict.fromkeys(range(pair.dim()), auto))
        except RuntimeError:
            if not limit.is_exceeded:
                raise
        size = " x ".join(str(size) for size in pair.shape[2:])
        warnings.warn(
            f"the int8 graph takes images of {size} only, because forward computes sizes in a way that would make "
            "exporting it for all sizes take minutes; pass dynamic_sizes=True to wait, or False to fix the size "
            "without this warning",
            stacklevel=2,
        )
    return export_program(model, pair, {0: auto})


def _record(called_paths: set[str], path: str, module: nn.Module, args: object) -> None:
    called_paths.add(path)


def _input_sizes(module: fx.GraphModule) -> tuple[int | None, ...]:
    value = next(node.meta["val"] for node in module.graph.nodes if node.op == "placeholder")
    return tuple(int(size) if is_concrete_int(size) else None for size in value.shape)


def _norm_inputs(module: fx.GraphModule) -> dict[str, str]:
    paths = {}
    for node in module.graph.nodes:
        if is_call(node, {BATCH_NORM}) and is_call(node.args[0], CONVS | LINEAR):
            norm, source = module_path(node), module_path(node.args[0])
            if norm is not None and source is not None:
                paths[norm] = source
    return paths
