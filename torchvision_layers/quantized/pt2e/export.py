"""A model as one exported graph that accepts batches and images of every size."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..._utils.exporting import as_module
from ..._utils.inputs import Inputs, accepts
from ..._utils.modules import copy_module
from ..._utils.safe_names import safe_names
from ..._utils.structure import flatten
from .constants import erase_unused_ops
from .nodes import BATCH_NORM, CONVS, LINEAR, WEIGHTED, is_call, module_path
from .regions import inline_regions
from .signature import Signature
from .sizes import SizedGraph, export_fixed, export_sized, output_values, warn_fixed
from .weights import make_padding_numeric

__all__ = ["ExportedModel", "export"]

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class ExportedModel:
    """The graph of a model, and what exporting knows of the model's modules."""

    #: Takes the tensors of the inputs and returns those of the outputs, as tuples.
    graph_module: fx.GraphModule
    signature: Signature
    #: The output of the model with slots in place of tensors, and of numbers that depend on sizes.
    output_template: Any
    #: For each tensor of the inputs and of the output, the dimensions that grow with the batch.
    batch_dims: tuple[list[list[int]], list[list[int]]]
    #: Paths of the modules that the forward calls.
    called_paths: frozenset[str]
    #: For each batch norm by path, the path of the convolution or linear layer before it.
    norm_inputs: dict[str, str]
    #: The number of images that it was exported with: two, unless the model takes only some numbers of images.
    images: int


def export(model: nn.Module, example: Inputs, dynamic_sizes: bool | None = None) -> ExportedModel:
    """Exports a copy of ``model``, which is in training or eval mode throughout.

    Args:
        model: the model.
        example: the inputs of a batch.
        dynamic_sizes: ``True`` for a graph that takes images of every size that the model takes, ``False`` for the
            sizes of the example only. ``None`` fixes them, with a warning, if an export for all sizes would be slow.

    Errors: ``TypeError`` if the model does not return a tensor; ``RuntimeError`` if it cannot be exported, or only for
    one batch size.
    """
    if example.has_list_of_images():
        raise TypeError(
            "inputs must not be lists with a tensor for each image for engine='pt2e', whose graph takes any number of "
            "images: pass one tensor, such as boxes with the index of their image, or use engine='eager'"
        )
    # Copies of fx.GraphModule are in training mode.
    model = as_module(copy_module(model).train(model.training))
    with safe_names(model) as old_paths:
        exported = _export(model, example, dynamic_sizes)
    return _with_paths(exported, old_paths) if old_paths else exported


def _export(model: nn.Module, example: Inputs, dynamic_sizes: bool | None) -> ExportedModel:
    """Exports ``model`` itself, to which it adds hooks."""
    called_paths = set[str]()
    for path, module in model.named_modules():
        # Modules that do nothing in eval mode leave no node behind, so the nodes do not show that they are called.
        module.register_forward_pre_hook(partial(_record, called_paths, path))
    signature = Signature(model, example)
    output_templates = _flatten_calls_(model, signature)
    tensors = signature.flatten(example)
    batch = next(len(tensor) for tensor in tensors if tensor.dim())
    is_single = batch == 1 or not example.can_be_cut()
    images = 2 if example.can_be_cut() else max(batch, 2)
    try:
        sized = export_sized(model, _images(tensors, batch, images), is_single, dynamic_sizes)
        if sized.has_guards and not accepts(copy_module(sized.graph_module), _images(tensors, batch, 2 * images)):
            raise RuntimeError("model must be exported for any number of images, its forward fixes it")
    except RuntimeError as error:
        sized, images = _export_otherwise(model, tensors, batch, dynamic_sizes, error)
    module = sized.graph_module
    inline_regions(module, model.training)
    erase_unused_ops(module.graph)  # quantizers expect that every operator has a user
    make_padding_numeric(module)
    _separate_elements(module)
    called_paths |= _name_owners(module, model)
    outputs = output_values(module)
    if not any(isinstance(value, Tensor) for value in outputs):
        output = output_templates[-1]
        shown = "None" if output is None else f"a {type(output).__name__} without any"
        raise TypeError(f"model must return at least one tensor, it returns {shown}")
    signature.sizes = sized.input_sizes
    if not sized.has_guards:
        signature.batch_dims = sized.batch_dims[0]
    return ExportedModel(
        module, signature, output_templates[-1], sized.batch_dims, frozenset(called_paths), _norm_inputs(module), images
    )


def _separate_elements(module: fx.GraphModule) -> None:
    """Gives each element of constant tensors its own memory, in place: a state cannot be loaded into expanded ones."""
    for node in module.graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        parent = module.get_submodule(owner)
        tensor = getattr(parent, name)
        is_constant = isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
        if is_constant and any(size > 1 and not step for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
            setattr(parent, name, tensor.contiguous())


def _with_paths(exported: ExportedModel, paths: Mapping[str, str]) -> ExportedModel:
    """The same graph with other paths of modules."""
    for module in exported.graph_module.modules():
        for node in getattr(module, "graph", fx.Graph()).nodes:
            stack = node.meta.get("nn_module_stack", {})
            for key, (path, cls) in stack.items():
                path, *call = path.split("@")
                stack[key] = "@".join([paths.get(path, path), *call]), cls
    return replace(
        exported,
        called_paths=frozenset(paths.get(path, path) for path in exported.called_paths),
        norm_inputs={paths.get(a, a): paths.get(b, b) for a, b in exported.norm_inputs.items()},
    )


def _export_otherwise(
    model: nn.Module, tensors: list[Tensor], batch: int, dynamic_sizes: bool | None, error: RuntimeError
) -> tuple[SizedGraph, int]:
    """The graph of a model that two images do not export for all sizes, and the number of images that did.

    Errors: ``error`` if it cannot be exported in another way either.
    """
    refused = [count for count in (1, 2, 3) if not accepts(copy_module(model), _images(tensors, batch, count))]
    if refused and accepts(copy_module(model), _images(tensors, batch, batch)):
        if not accepts(copy_module(model), _images(tensors, batch, 2 * batch)):
            raise RuntimeError(
                f"model must take any number of images, with inputs of shape {list(tensors[0].shape)} it takes {batch} "
                "only: its forward fixes the number, or the inputs lack the dimension of the batch, which "
                ".unsqueeze(0) adds"
            ) from error
        if batch < 4:
            raise RuntimeError(
                f"model must be exported with a batch of at least twice as many images as it needs, got {batch}: its "
                f"forward raises for {' or '.join(map(str, refused))}"
            ) from error
        return export_sized(model, _images(tensors, batch, batch), False, dynamic_sizes), batch
    if dynamic_sizes is not None:
        raise error
    pair = _images(tensors, batch, 2)
    try:
        sized = export_fixed(model, pair, batch == 1)
    except RuntimeError:
        raise error from error.__cause__
    warn_fixed(pair, "impossible; dynamic_sizes=True shows the error")
    return sized, 2


def _record(called_paths: set[str], path: str, module: nn.Module, args: object) -> None:
    called_paths.add(path)


def _name_owners(module: fx.GraphModule, model: nn.Module) -> set[str]:
    """Makes the module that holds a weight the innermost module of its operator, and returns the paths of these.

    Attention calls functions with the weights of its children.
    """
    owners = set[str]()
    for node in module.graph.nodes:
        weight = node.args[1] if is_call(node, WEIGHTED) else None
        path = module_path(node)
        if path is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        owner, _, name = str(weight.target).rpartition(".")
        # A weight may be shared with the module that called the operator.
        if owner and getattr(model.get_submodule(path), name, None) is not getattr(model.get_submodule(owner), name):
            cls = type(model.get_submodule(owner))
            stack = {**node.meta["nn_module_stack"], owner: (owner, f"{cls.__module__}.{cls.__qualname__}")}
            node.meta["nn_module_stack"] = stack
            owners.add(owner)
    return owners


def _flatten_calls_(model: nn.Module, signature: Signature) -> list[Any]:
    """Makes ``model`` take and return tuples of tensors, in place, and returns a list of the outputs' templates.

    The exporter knows no dataclasses. Hooks do it, so that hooks of the model see what they always see.
    """
    templates = list[Any]()

    def rebuild_inputs(module: nn.Module, args: tuple[Tensor, ...], kwargs: object) -> tuple[Any, Any]:
        inputs = signature.rebuild(args)
        return inputs.args, inputs.kwargs

    def flatten_output(module: nn.Module, args: object, output: Any) -> tuple[Any, ...]:
        tensors, template = flatten(output, (Tensor, *_NUMBERS))
        templates.append(template)
        return tuple(tensors)

    model.register_forward_pre_hook(rebuild_inputs, prepend=True, with_kwargs=True)
    model.register_forward_hook(flatten_output)
    kind = inspect.Parameter.POSITIONAL_ONLY
    forward = partial(model.forward)
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in signature.names()])  # type: ignore[attr-defined]
    model.forward = forward
    return templates


def _images(tensors: list[Tensor], batch: int, count: int) -> Inputs:
    """The inputs with ``count`` images of a batch: torch.export specializes on a size of one, and two are enough.

    They are copies, which have no gaps in memory that the graph would then require.
    """
    images = []
    for tensor in tensors:
        if tensor.dim() and len(tensor) == batch:
            tensor = torch.cat([tensor] * (1 + count // batch))[:count]
        images.append(tensor.detach().clone())
    return Inputs(tuple(images))


def _norm_inputs(module: fx.GraphModule) -> dict[str, str]:
    paths = {}
    for node in module.graph.nodes:
        if is_call(node, {BATCH_NORM}) and is_call(node.args[0], CONVS | LINEAR):
            norm, source = module_path(node), module_path(node.args[0])
            if norm is not None and source is not None:
                paths[norm] = source
    return paths
