"""Turns the tensor operations of each ``forward`` into child modules, which fusion, observers and reports then see."""

import keyword

import torch.fx
from torch import nn

from ..._utils.tracing import shallow_graph
from ..report_row import Int8Support
from .operations import Kinds, UnsupportedError, kind_of, replacement
from .support import int8_support, is_unit

__all__ = ["rewrite_forwards"]


def rewrite_forwards(model: nn.Module, allow_float: bool, will_train: bool) -> None:
    """Rewrites each ``forward`` in ``model`` that computes with tensors, in place.

    Modules stay the same objects under the same names, with the same ``state_dict`` keys. A ``forward`` that cannot be
    traced stays as it is.

    Args:
        model: in float.
        allow_float: leaves modules in float that cannot be rewritten.
        will_train: whether the result must hold in training mode as well as in eval mode.

    Errors: ``TypeError`` with the path of each module that cannot be rewritten.
    """
    problems = []
    for path, module in list(model.named_modules()):
        if not _is_candidate(module):
            continue
        try:
            _rewrite(module, will_train)
        except UnsupportedError as error:
            if allow_float:
                module.stays_in_float = True
            else:
                problems.append(f"{path or 'model'} is a {type(module).__name__}, whose forward {error}")
    if problems:
        raise TypeError("; ".join(problems) + "; pass allow_float=True to leave such modules in float")


def _is_candidate(module: nn.Module) -> bool:
    is_whole = is_unit(module) or "forward" in vars(module) or hasattr(module, "stays_in_float")
    if is_whole or hasattr(module, "float_class"):
        return False
    is_of_torch = type(module).__module__.startswith("torch.nn.modules")
    return not is_of_torch and int8_support(module) in (Int8Support.CONTAINER, Int8Support.UNKNOWN)


def _rewrite(module: nn.Module, will_train: bool) -> None:
    rewritten = _rewritten(module, training=False)
    if will_train and _source(rewritten) != _source(_rewritten(module, training=True)):
        raise UnsupportedError("computes something else in training mode than in eval mode")
    if rewritten is None:
        return
    graph, children = rewritten
    for name, child in children.items():
        module.add_module(name, child.train(module.training))
    cls = type(module)
    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "forward": type(torch.fx.GraphModule(module, graph)).forward,
        "is_rewritten": True,
    }
    module.__class__ = type(cls.__name__, (cls,), members)


def _rewritten(module: nn.Module, training: bool) -> tuple[torch.fx.Graph, dict[str, nn.Module]] | None:
    """A graph of the ``forward`` whose operations are calls of new children; ``None`` if it has none, or no trace."""
    graph = shallow_graph(module, training)
    if graph is None:
        return None
    kinds: Kinds = {}
    children: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        kinds[node] = kind_of(module, node, kinds)
        operation = replacement(module, node, kinds)
        if operation is None:
            continue
        name = _free_name(module, children, operation.name)
        children[name] = operation.module
        with graph.inserting_before(node):
            call = graph.create_node("call_module", name, operation.args, operation.kwargs)
        kinds[call] = kinds[node]
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    return (graph, children) if children else None


def _source(rewritten: tuple[torch.fx.Graph, dict[str, nn.Module]] | None) -> tuple[str, str] | None:
    return rewritten and (rewritten[0].python_code("self").src, str(rewritten[1]))


def _free_name(module: nn.Module, children: dict[str, nn.Module], name: str) -> str:
    base = f"{name}_op" if keyword.iskeyword(name) else name
    free, i = base, 1
    while hasattr(module, free) or free in children:
        free, i = f"{base}_{i}", i + 1
    return free
