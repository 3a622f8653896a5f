"""Turns the tensor operations of each ``forward`` into child modules, which fusion, observers and reports then see."""

import keyword
import operator
from typing import NamedTuple

import torch.fx
from torch import nn

from ..._utils.data_flow import analyze
from ..._utils.modules import has_hooks
from ..._utils.safe_names import generated_forward
from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.side_effects import without_changes
from ..._utils.tracing import check_items, is_sequence, shallow_graph
from ..layers.observed import Addition, Concatenation, Multiplication, Observed, QuantStub
from ..report_row import Int8Support
from .first_run import Arguments, FirstRun
from .float_values import float_dtype, values_to_round
from .in_place import Memory, UnsupportedError, make_out_of_place_
from .int8_pools import INT8_POOLS
from .operations import Kind, Kinds, Operation, OwnWeightError, kind_of, replacement, takes_int8
from .repeated_calls import copy_with_same_tensors, split_shared
from .support import int8_support, is_unit
from .wrappers import FloatOperation

__all__ = ["restore", "rewrite_forwards"]


def rewrite_forwards(model: nn.Module, allow_float: bool, will_train: bool, run: FirstRun | None) -> dict[str, str]:
    """Rewrites each ``forward`` in ``model`` that computes with tensors, in place.

    Modules stay the same objects under the same names, with the same ``state_dict`` keys. A ``forward`` that cannot be
    traced or rewritten stays as it is.

    Args:
        model: in float.
        allow_float: runs functions in float that compute with a weight of their own.
        will_train: whether the result must hold in training mode as well as in eval mode.
        run: what ``model`` did on one batch, if a batch is known.

    Returns the paths of modules that compute with a weight of their own, each with a reason.
    """
    problems = {}
    if run is not None:
        split_shared(model, run)
    memory = _memory(model, run)
    for path, module in model.named_modules():  # copies that it adds to a module come after that module
        if not _is_candidate(module) or (run is not None and path in run.kept):
            continue
        try:
            graph = _rewrite(module, path, allow_float, will_train, run, memory)
            if run and graph and not any(node.op == "placeholder" and node.args for node in graph.nodes):
                run.traces[module] = analyze(graph)  # arguments with defaults would need a second trace
        except OwnWeightError as error:
            problems[path] = str(error)
        except UnsupportedError:
            continue  # it runs in float
    return problems


def _memory(model: nn.Module, run: FirstRun | None) -> Memory:
    modules = dict(model.named_modules())
    in_place = {
        module
        for module in modules.values()
        if type(module).__module__.startswith("torch.nn.modules.activation") and getattr(module, "inplace", False)
    }
    if run is None:
        return Memory(in_place, None)
    writers, views = ({modules[path] for path in paths if path in modules} for paths in (run.writers, run.views))
    return Memory(in_place | writers, views | in_place)


def _is_candidate(module: nn.Module) -> bool:
    is_whole = is_unit(module) or "forward" in vars(module) or hasattr(module, "stays_in_float")
    if (
        is_sequence(module)
        or is_whole
        or hasattr(module, "float_class")
        or isinstance(module, (*CONV_AND_LINEAR, nn.Bilinear))
    ):
        return False
    is_of_torch = type(module).__module__.startswith("torch.nn.modules")
    return not is_of_torch and int8_support(module) in (Int8Support.CONTAINER, Int8Support.UNKNOWN)


def _rewrite(
    module: nn.Module, path: str, allow_float: bool, will_train: bool, run: FirstRun | None, memory: Memory
) -> torch.fx.Graph | None:
    """Returns the graph of the ``forward`` in eval mode as it is then; ``None`` if tracing fails."""
    arguments = run.arguments[path] if run else None
    distinct = run.distinct_below(path) if run else set[str]()
    rewritten = _rewritten(module, allow_float, False, arguments, distinct, memory)
    if will_train and _source(rewritten) != _source(_rewritten(module, allow_float, True, arguments, distinct, memory)):
        raise UnsupportedError("computes something else in training mode than in eval mode")
    if rewritten is None:
        return None
    graph, children, copies, read, is_changed = rewritten
    if not is_changed:
        module.takes_int8 = True  # type: ignore[assignment]  # a plain attribute
        return graph
    try:
        forward = generated_forward(graph)
    except SyntaxError as error:
        raise UnsupportedError("uses a constant without a literal, such as a member of an enumeration") from error
    for name, child in children.items():
        module.add_module(name, child.train(module.training))
        if run is not None and name in copies:
            run.duplicate(_join(path, copies[name]), _join(path, name), path)
            memory.duplicate(module.get_submodule(copies[name]), child)
    cls = type(module)
    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "forward": forward,
        "__setattr__": without_changes(cls, read),
        "is_rewritten": True,
        "new_children": tuple(children),
        "only_calls_children": all(node.op in ("placeholder", "call_module", "output") for node in graph.nodes),
    }
    module.__class__ = type(cls.__name__, (cls,), members)
    return graph


def restore(module: nn.Module) -> None:
    """Gives a module its own ``forward`` back, in place, if it was rewritten."""
    if hasattr(module, "is_rewritten"):
        for name in type(module).new_children:  # type: ignore[attr-defined]  # of the class that _rewrite made
            delattr(module, name)
        module.__class__ = type(module).__mro__[1]


class _Rewritten(NamedTuple):
    graph: torch.fx.Graph
    #: The new children that it calls.
    children: dict[str, nn.Module]
    #: The names of those that are copies, each with the name of the original.
    copies: dict[str, str]
    #: The names of the attributes whose values it holds.
    constants: frozenset[str]
    is_changed: bool


def _rewritten(
    module: nn.Module,
    allow_float: bool,
    training: bool,
    arguments: Arguments | None,
    distinct: set[str],
    memory: Memory,
) -> _Rewritten | None:
    """The ``forward`` with operations that are calls of new children; ``None`` if tracing fails.

    Each further call of a child in ``distinct`` becomes a copy of it.
    """
    constants = None if arguments is None else arguments.constants(module)
    traced = shallow_graph(module, training, constants)
    if traced is None and arguments is not None and (containers := arguments.containers()):
        traced = shallow_graph(module, training, constants, containers)
        if traced is not None and not _tells_items_apart(traced[0]):
            traced = None
    if traced is None:
        return None
    graph, effects, constants_read = traced
    kinds: Kinds = {}
    for node in graph.nodes:
        kinds[node] = kind_of(module, node, kinds, arguments)
    targets = [node.target for node in graph.nodes]
    is_changed = make_out_of_place_(module, graph, [node for node in graph.nodes if takes_int8(node, kinds)], memory)
    for node in graph.nodes:
        if node.target is getattr and node.args[1] == "dtype" and kinds[node.args[0]] is Kind.ACTIVATION:
            node.target, node.args = float_dtype, node.args[:1]
    operations = _operations(module, graph, kinds, allow_float, training)
    is_changed |= targets != [node.target for node in graph.nodes]  # views become reshapes
    children: dict[str, nn.Module] = {}
    copies: dict[str, str] = {}

    def add_child(name: str, child: nn.Module) -> str:
        free = _free_name(module, children, name)
        children[free] = child
        return free

    for node in list(graph.nodes):
        for value in values_to_round(module, node, kinds):
            with graph.inserting_before(node):
                node.replace_input_with(value, graph.call_module(add_child("quant", QuantStub()), (value,)))
    called = set[nn.Module]()
    for node in graph.nodes:
        is_own = node.op == "call_module" and node.target not in children
        child = module.get_submodule(str(node.target)) if is_own else None
        if child is not None and child in called and (_is_stateless(child) or node.target in distinct):
            # Each call has a range of its own, and may fuse with the layer before it.
            name = add_child(str(node.target).replace(".", "_"), copy_with_same_tensors(child))
            copies[name], node.target = str(node.target), name
        elif child is not None:
            called.add(child)
    for node, operation in operations.items():
        node.op, node.target = "call_module", add_child(operation.name, operation.module)
        node.args, node.kwargs = operation.args, operation.kwargs
    is_changed |= bool(children)
    if is_changed and effects:
        raise UnsupportedError(effects[0])
    return _Rewritten(graph, children, copies, constants_read, is_changed)


def _tells_items_apart(graph: torch.fx.Graph) -> bool:
    """Whether the items of each list reach different modules, like the levels of a pyramid.

    If not, they may be a batch of images, and the next call may hold another number of them.
    """
    for check in (node for node in graph.nodes if node.target is check_items):
        _, container, keys = check.args
        items = [node for node in container.users if node.target is operator.getitem]
        is_list = keys == list(range(len(keys)))
        if is_list and len({_modules_after(item) for item in items}) < len(keys):
            return False
    return True


def _modules_after(node: torch.fx.Node) -> frozenset[str]:
    """The modules that depend on the value of ``node``."""
    found, reached = {node}, [node]
    for other in reached:
        new = [user for user in other.users if user not in found]
        found.update(new)
        reached += new
    return frozenset(str(other.target) for other in reached if other.op == "call_module")


def _is_stateless(module: nn.Module) -> bool:
    """Whether a copy of a leaf module computes the same, whatever happens to the original."""
    is_known = isinstance(module, Observed) or (
        type(module).__module__.startswith("torch.nn.modules") and not module._modules
    )
    return (
        is_known and next(module.parameters(), None) is next(module.buffers(), None) is None and not has_hooks(module)
    )


def _operations(
    module: nn.Module, graph: torch.fx.Graph, kinds: Kinds, allow_float: bool, training: bool
) -> dict[torch.fx.Node, Operation]:
    """The operation that takes the place of each node that cannot stay. Values between float operations stay float."""
    replacements = {node: replacement(module, node, kinds, allow_float, training) for node in graph.nodes}
    operations = {node: operation for node, operation in replacements.items() if operation is not None}
    takes_float: dict[torch.fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        has_float_users = bool(node.users) and all(takes_float[user] for user in node.users)
        operation = operations.get(node)
        if operation is None:  # what stays passes floats through, or computes no tensor
            takes_float[node] = node.op in ("call_function", "call_method") and (
                has_float_users or not takes_int8(node, kinds)
            )
            continue
        is_after_float = any(
            isinstance(operations[argument].module, FloatOperation)
            for argument in node.all_input_nodes
            if argument in operations
        )
        is_arithmetic = isinstance(operation.module, (Addition, Concatenation, Multiplication))
        if has_float_users and (
            isinstance(operation.module, FloatOperation)
            or type(operation.module) in INT8_POOLS
            or (is_arithmetic and is_after_float)
        ):
            operations[node] = Operation(operation.name, FloatOperation(node.target, False), node.args, node.kwargs)
        takes_float[node] = isinstance(operations[node].module, FloatOperation)
    return operations


def _source(rewritten: _Rewritten | None) -> tuple[str, str] | None:
    """The code and the children of a rewritten ``forward``; ``None`` if it stays as it is."""
    if rewritten is None or not rewritten.is_changed:
        return None
    return rewritten.graph.python_code("self").src, str(rewritten.children)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _free_name(module: nn.Module, children: dict[str, nn.Module], name: str) -> str:
    base = f"{name}_op" if keyword.iskeyword(name) else name
    free, i = base, 1
    while hasattr(module, free) or free in children:
        free, i = f"{base}_{i}", i + 1
    return free
