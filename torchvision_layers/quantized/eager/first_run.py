"""One run of a float model: the arguments of each ``forward``, and the modules and weights that it uses."""

import inspect
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..._utils.data_flow import ForwardTrace
from ..._utils.inputs import Inputs
from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.structure import flatten
from ..._utils.tracing import Container
from .call_checks import check_call
from .hooks import watch_hooks
from .in_place import UnsupportedError
from .result_sizes import Measure, find_distinct_ranges

__all__ = ["WEIGHTED", "Arguments", "FirstRun", "run_first", "running_module"]

#: Functions that compute with a weight, and the layers that call them.
WEIGHTED: dict[Callable[..., Any], type[nn.Module]] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
    F.linear: nn.Linear,
    F.bilinear: nn.Bilinear,
}


class Passed(Enum):
    """A value that a graph cannot hold as a constant."""

    FLOATS = "holds floating-point tensors"
    OTHER = "holds none"


@dataclass
class Arguments:
    """The arguments that the calls of a ``forward`` pass, by name."""

    #: Constants, with their types, because ``1 == True``; ``Passed`` for anything else.
    values: dict[str, set[tuple[type, Any]]] = field(default_factory=lambda: defaultdict(set))
    #: The containers of tensors among them; ``None`` if it is another object.
    structures: dict[str, set[Container | None]] = field(default_factory=lambda: defaultdict(set))

    def record(self, forward: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Adds a call."""
        bound = forward.bind(None, *args, **kwargs)
        bound.apply_defaults()
        for name, value in list(bound.arguments.items())[1:]:
            self.values[name].add((type(value), value) if _is_constant(value) else (Passed, _passed(value)))
            self.structures[name].add(_container(value))

    def containers(self) -> dict[str, Container]:
        """The arguments that are containers with the same keys in all calls."""
        return {
            name: container
            for name, (container, *others) in self.structures.items()
            if container is not None and not others
        }

    def holds_floats(self, name: str) -> bool:
        """Whether the argument holds floating-point tensors in any call."""
        return (Passed, Passed.FLOATS) in self.values[name]

    def constants(self, module: nn.Module) -> dict[str, Any]:
        """The values of the arguments of ``module.forward`` that have defaults and are the same in all calls.

        Numbers other than the default are no constants, because they may depend on the size of images.

        Errors: ``UnsupportedError`` if the calls differ in another way.
        """
        constants = {}
        for parameter in inspect.signature(type(module).forward).parameters.values():
            if not _is_constant(parameter.default):
                continue
            values = self.values.get(parameter.name) or {(type(parameter.default), parameter.default)}
            (kind, value), *others = values
            is_number = kind in (int, float) and value != parameter.default
            if not others and kind is not Passed and not is_number:
                constants[parameter.name] = value
            elif {kind for kind, _ in values} & {bool, str, type(None)}:
                raise UnsupportedError(f"is called with different values of {parameter.name}")
        return constants


def _is_constant(value: object) -> bool:
    return isinstance(value, (bool, float, int, str, type(None)))


def _container(value: object) -> Container | None:
    """The class and keys of a list, tuple or dict that holds nothing but tensors."""
    if type(value) not in (list, tuple, dict, OrderedDict):
        return None
    keys: Any = value if isinstance(value, dict) else range(len(value))  # type: ignore[arg-type]
    return (type(value), tuple(keys)) if all(isinstance(value[key], Tensor) for key in keys) else None  # type: ignore[index]


def _passed(value: object) -> Passed:
    return Passed.FLOATS if any(map(Tensor.is_floating_point, flatten(value)[0])) else Passed.OTHER


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    """The tensors among ``values`` that count writes."""
    return [value for value in values if isinstance(value, Tensor) and not value.is_inference()]


@dataclass
class FirstRun:
    """The calls of a model on one batch, by the paths of its modules."""

    arguments: dict[str, Arguments] = field(default_factory=lambda: defaultdict(Arguments))
    #: How often each module was called, or its weight used by a function.
    calls: Counter[str] = field(default_factory=Counter)
    #: The largest value of each result of a module, or of a function that used its weight.
    sizes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    #: The modules whose calls differ in the sizes of values, or that call one, with the largest over the smallest.
    distinct_ranges: dict[str, float] = field(default_factory=dict)
    #: The modules that each ``forward`` calls.
    callees: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: The convolutions and linear layers whose weights each ``forward`` gives to a function that int8 modules replace.
    weights: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: The path of a ``forward`` that computes with weights in another way, and the way.
    problems: dict[str, str] = field(default_factory=dict)
    #: The convolutions and linear layers with these weights, by the same paths.
    read_layers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: The modules that write into their first argument and return it.
    writers: set[str] = field(default_factory=set)
    #: The modules that write into an argument and return something else.
    silent_writers: set[str] = field(default_factory=set)
    #: The modules whose ``forward`` must stay as it is.
    kept: set[str] = field(default_factory=set)
    #: The modules whose output shares memory with an argument.
    views: set[str] = field(default_factory=set)
    #: The modules whose hooks change tensors.
    changed_by_hooks: set[str] = field(default_factory=set)
    #: How each ``forward`` that was examined in eval mode, and rewritten if necessary, uses the modules below it.
    traces: dict[nn.Module, ForwardTrace] = field(default_factory=dict)

    def record_memory(self, path: str, args: tuple[Any, ...], versions: list[int], output: object) -> None:
        """Adds a call that got ``args``, whose tensors had these versions before."""
        inputs = _tensors(args)
        written = [tensor for tensor, version in zip(inputs, versions, strict=True) if tensor._version != version]
        if written and output is written[0] is inputs[0]:
            self.writers.add(path)
        elif written:
            self.silent_writers.add(path)
        pointers = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        if any(tensor.untyped_storage().data_ptr() in pointers for tensor in flatten(output)[0]):
            self.views.add(path)

    def distinct_below(self, path: str) -> set[str]:
        """The names, relative to the module at ``path``, of those below it whose calls cannot share a range."""
        prefix = f"{path}." if path else ""
        return {name.removeprefix(prefix) for name in self.distinct_ranges if name.startswith(prefix)}

    def duplicate(self, path: str, copy_path: str, caller: str) -> None:
        """Adds a copy, which ``caller`` calls, of the module at ``path`` and those below it."""

        def moved(name: str) -> str:
            return copy_path + name[len(path) :] if f"{name}.".startswith(f"{path}.") else name

        def add_moved(record: dict[str, Any], values: dict[str, Any]) -> None:
            record.update({moved(name): value for name, value in values.items() if moved(name) != name})

        for paths in (self.writers, self.silent_writers, self.kept, self.views):
            paths.update(set(map(moved, paths)))
        for record in (self.callees, self.weights, self.read_layers):
            add_moved(record, {name: set(map(moved, names)) for name, names in record.items()})
        add_moved(self.arguments, self.arguments)
        add_moved(self.problems, self.problems)
        self.callees[caller].add(copy_path)

    def forget(self, path: str) -> None:
        """Drops what the ``forward`` at ``path`` did, because another takes its place."""
        for record in (self.arguments, self.callees, self.weights, self.problems, self.read_layers):
            record.pop(path, None)
        self.writers.discard(path)


def run_first(model: nn.Module, inputs: Inputs, excluded: Mapping[str, str]) -> tuple[Any, FirstRun]:
    """The output of ``model`` on ``inputs``, computed without gradients, and the calls that it made."""
    paths = {module: path for path, module in model.named_modules()}
    run, measure = FirstRun(), Measure()
    stack: list[nn.Module] = []
    versions: list[list[int]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_call(paths[module], module, args, excluded)
        versions.append([tensor._version for tensor in _tensors(args)])
        run.calls[paths[module]] += 1
        run.arguments[paths[module]].record(inspect.signature(type(module).forward), args, kwargs)
        if stack:
            run.callees[paths[stack[-1]]].add(paths[module])

    def record_output(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        run.record_memory(paths[module], args, versions.pop(), output)
        size = measure(output)
        if size is not None:
            run.sizes[paths[module]].append(size)

    handles = watch_hooks(paths, run.changed_by_hooks)
    handles += [module.register_forward_pre_hook(record, with_kwargs=True) for module in paths]
    handles += [module.register_forward_hook(record_output) for module in paths]
    try:
        with torch.no_grad(), running_module(model, stack), _WeightUses(model, stack, paths, run):
            output = inputs.run(model)
    except Exception as error:
        if not type(error).__module__.startswith("torch._dynamo"):
            raise
        raise TypeError(
            f"model must not use operators of torch that hooks cannot observe, such as torch.cond: "
            f"{paths[stack[-1]] or 'its forward'} does; compute both branches and use torch.where, or quantize the "
            "modules around it one by one"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    run.distinct_ranges = find_distinct_ranges(model, run.sizes)
    return output, run


@contextmanager
def running_module(model: nn.Module, stack: list[nn.Module]) -> Iterator[None]:
    """Keeps the modules whose ``forward`` runs in ``stack``, the innermost last, also after an exception."""

    def enter(module: nn.Module, args: object) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: object, output: object) -> None:
        stack.pop()

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _WeightUses(TorchFunctionMode):
    """Records the weights that a ``forward`` uses other than by calling a convolution or linear layer."""

    def __init__(self, model: nn.Module, stack: list[nn.Module], paths: dict[nn.Module, str], run: FirstRun) -> None:
        super().__init__()
        self.owners = {
            id(module._parameters["weight"]): path
            for module, path in paths.items()
            if isinstance(module, CONV_AND_LINEAR) and "weight" in module._parameters
        }
        self.layers = {path: module for module, path in paths.items()}
        self.stack, self.paths, self.run = stack, paths, run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_outside_layers() and getattr(func, "__name__", "") != "__get__":
            self._record(func, args, kwargs)
        output = func(*args, **kwargs)
        if func in WEIGHTED and self._is_outside_layers():
            path = self.owners.get(id(_weight(args, kwargs)))
            if path is not None and output.numel():
                self.run.calls[path] += 1
                self.run.sizes[path].append(float(output.abs().max()))
        return output

    def _is_outside_layers(self) -> bool:
        """Whether a module runs that is not itself a layer with weights."""
        return bool(self.stack) and not isinstance(self.stack[-1], (*CONV_AND_LINEAR, nn.MultiheadAttention))

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = self.paths[self.stack[-1]]
        owned = [self.owners[id(t)] for t in flatten((args, kwargs))[0] if id(t) in self.owners]
        owner = self.owners.get(id(_weight(args, kwargs))) if func in WEIGHTED else None
        if func not in WEIGHTED or (owner is not None and not isinstance(self.layers[owner], WEIGHTED[func])):
            if owned:
                self.run.read_layers[path].update(owned)
                self.run.problems[path] = f"reads {owned[0]}.weight in {func.__name__}"
        elif owner is None:
            self.run.problems[path] = f"calls {func.__name__} with a weight of its own"
        else:
            self.run.weights[path].add(owner)


def _weight(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The weight that a function in ``WEIGHTED`` gets."""
    return kwargs["weight"] if "weight" in kwargs else args[1]
