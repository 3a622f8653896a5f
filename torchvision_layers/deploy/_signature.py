"""How a model is called and what it returns, as JSON values that a file stores."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from .._utils.inputs import Inputs
from ..quantized import QuantizableGraph, QuantizableModel
from .lowering.model import LoweredModel

__all__ = ["Shape", "Signature", "TensorSpec", "describe_structure", "forward_signature", "items_of", "plain"]

#: Sizes of a tensor, with the name of the axis or ``None`` in place of each variable size. Equal names, equal sizes.
Shape = tuple[int | str | None, ...]

_CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class TensorSpec:
    """An input tensor: its name, its sizes, and its dtype without ``torch.``."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Signature:
    """How a file is called, and what it returns.

    A structure is a JSON value: ``{"tensor": name}``, ``{"constant": value}``, ``{"tuple": items}``,
    ``{"list": items}``, or ``{"dict": pairs}``.
    """

    inputs: tuple[TensorSpec, ...]
    #: The structure of the positional and of the keyword inputs.
    args: list[Any]
    kwargs: dict[str, Any]
    #: Names of the output tensors.
    outputs: tuple[str, ...]
    #: The structure of the output.
    output: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, example: Inputs, output: Any) -> Self:
        """The signature of a call, with the sizes of the example."""
        names = _input_names(model, example)
        outputs = _output_names(output, names)
        specs = [
            TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in zip(names, example.tensors(), strict=True)
        ]
        remaining = iter(names)
        args = [describe_structure(value, remaining) for value in example.args]
        kwargs = {key: describe_structure(value, remaining) for key, value in example.kwargs.items()}
        return cls(tuple(specs), args, kwargs, tuple(outputs), describe_structure(output, iter(outputs)))

    @property
    def has_one_input(self) -> bool:
        """Whether the only input is a tensor that is passed by position."""
        return self.args == [{"tensor": "input"}] and not self.kwargs

    @property
    def has_one_output(self) -> bool:
        """Whether the output is a tensor."""
        return set(self.output) == {"tensor"}

    @property
    def has_constants(self) -> bool:
        """Whether an input is not a tensor."""
        return any(True for _ in _constants([*self.args, *self.kwargs.values()]))

    def dict_keys(self) -> Iterator[Any]:
        """The keys of all dicts in inputs and outputs."""
        return _keys([*self.args, *self.kwargs.values(), self.output])

    @property
    def returns_strings(self) -> bool:
        """Whether the output contains a string."""
        return any(isinstance(value, str) for value in _constants(self.output))

    def with_shapes(self, shapes: Sequence[Shape]) -> Self:
        """The same signature for other sizes of the inputs."""
        inputs = tuple(replace(spec, shape=shape) for spec, shape in zip(self.inputs, shapes, strict=True))
        return replace(self, inputs=inputs)

    def to_json(self) -> dict[str, object]:
        """The fields of the metadata. One input of floats has ``input_shape`` only, one output needs no field."""
        fields: dict[str, object] = {}
        if self.has_one_input and self.inputs[0].dtype == "float32":
            fields["input_shape"] = [None if isinstance(size, str) else size for size in self.inputs[0].shape]
        else:
            fields["inputs"] = [{"name": i.name, "shape": list(i.shape), "dtype": i.dtype} for i in self.inputs]
            fields["call"] = {"args": self.args, "kwargs": self.kwargs}
        if self.output != {"tensor": "output"}:
            fields["outputs"] = list(self.outputs)
            fields["returns"] = self.output
        return fields

    @classmethod
    def from_json(cls, metadata: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Errors: ``KeyError``, ``TypeError`` or ``ValueError`` for anything that it does not write.
        """
        if "input_shape" in metadata:
            inputs = [TensorSpec("input", tuple(metadata["input_shape"]), "float32")]
            args, kwargs = [{"tensor": "input"}], {}
        else:
            inputs = [TensorSpec(i["name"], tuple(i["shape"]), i["dtype"]) for i in metadata["inputs"]]
            args, kwargs = list(metadata["call"]["args"]), dict(metadata["call"]["kwargs"])
        outputs = tuple(metadata.get("outputs", ["output"]))
        signature = cls(tuple(inputs), args, kwargs, outputs, dict(metadata.get("returns", {"tensor": "output"})))
        sizes = [size for spec in inputs for size in spec.shape]
        texts = [*outputs, *(text for spec in inputs for text in (spec.name, spec.dtype))]
        if not all(isinstance(size, int | str | None) for size in sizes) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"names must be strings and sizes numbers or names, got {metadata}")
        signature.restore([None] * len(outputs))
        return signature

    def in_order(self, inputs: Inputs) -> Inputs:
        """The same inputs in the order of the example.

        Keywords that name positional tensors of the example take their places; keywords, and keys of dicts, that it
        lacks are the last.
        """
        names = [structure.get("tensor") for structure in self.args]
        if not inputs.args and not self.kwargs and {*inputs.kwargs} == {*names}:
            inputs = Inputs(tuple(inputs.kwargs[name] for name in names))
        args = [*map(_in_order, self.args, inputs.args), *inputs.args[len(self.args) :]]
        return Inputs(tuple(args), _in_order({"dict": self.kwargs.items()}, inputs.kwargs))

    def check(self, inputs: Inputs) -> None:
        """Errors: ``TypeError`` unless ``inputs``, in order, have the structure and constants of the example."""
        names = iter([spec.name for spec in self.inputs] + ["tensor"] * len(inputs.tensors()))
        try:
            args = [describe_structure(value, names) for value in inputs.args]
            kwargs = {name: describe_structure(value, names) for name, value in inputs.kwargs.items()}
        except TypeError as error:
            raise TypeError(f"inputs must be {error}") from error
        if (args, kwargs) != (self.args, self.kwargs):
            expected, got = _show_call(self.args, self.kwargs), _show_call(args, kwargs)
            hint = ": pass the inputs by position" if inputs.kwargs and not self.kwargs else ""
            raise TypeError(f"inputs must be those of the example, {expected}, got {got}{hint}")

    def restore(self, tensors: Sequence[Any]) -> Any:
        """The output with these tensors."""
        return _restore(self.output, dict(zip(self.outputs, tensors, strict=True)))


def forward_signature(model: nn.Module) -> inspect.Signature:
    """The signature of the ``forward`` that a user wrote."""
    if isinstance(model, QuantizableGraph):
        return model.signature.parameters
    if isinstance(model, LoweredModel):
        return model._signature.parameters
    return inspect.signature((model.model if isinstance(model, QuantizableModel) else model).forward)


def plain(value: Any) -> Any:
    """``value`` in tuples, lists and dicts only: a named tuple becomes a tuple, a dataclass or mapping a dict.

    Files return these, because loading other containers would need their classes.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return list(map(plain, value)) if isinstance(value, list) else value


def items_of(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys or indices of a dict, tuple or list, with the values; nothing for other values."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (tuple, list)) else ()


def describe_structure(value: Any, names: Iterator[str]) -> dict[str, Any]:
    """The structure of ``value``, whose tensors have these names.

    Errors: ``TypeError`` for anything but tensors, numbers, strings and ``None`` in tuples, lists and dicts.
    """
    if isinstance(value, Tensor):
        return {"tensor": next(names)}
    if isinstance(value, dict) and all(type(key) in _CONSTANTS for key in value):
        return {"dict": [[key, describe_structure(item, names)] for key, item in value.items()]}
    if type(value) in (tuple, list):
        return {type(value).__name__: [describe_structure(item, names) for item in value]}
    if type(value) in _CONSTANTS:
        return {"constant": value}
    key = next((key for key in value if type(key) not in _CONSTANTS), None) if isinstance(value, dict) else None
    shown = type(value).__name__ if key is None else f"dict with a key that is a {type(key).__name__}"
    raise TypeError(f"only tensors, numbers, strings and None in tuples, lists and dicts, got a {shown}")


def _in_order(structure: Mapping[str, Any], value: Any) -> Any:
    """``value`` with the keys of its dicts in the order of a structure; those that the structure lacks are the last."""
    if "dict" in structure and isinstance(value, dict):
        items = dict(structure["dict"])
        ordered = {key: value[key] for key in items if key in value} | value
        return {key: _in_order(items.get(key, {}), item) for key, item in ordered.items()}
    parts = structure.get(type(value).__name__)
    if isinstance(parts, list) and type(value) in (tuple, list):
        return type(value)([*map(_in_order, parts, value), *value[len(parts) :]])
    return value


def _restore(structure: Any, tensors: Mapping[str, Any]) -> Any:
    ((kind, value),) = structure.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _restore(item, tensors) for key, item in value}
    if kind in ("tuple", "list"):
        items = [_restore(item, tensors) for item in value]
        return tuple(items) if kind == "tuple" else items
    if kind != "constant" or type(value) not in _CONSTANTS:
        raise ValueError(f"a structure must be a tensor, constant, tuple, list or dict, got {structure}")
    return value


def _show_call(args: list[Any], kwargs: Mapping[str, Any]) -> str:
    return f"({', '.join([*map(_show, args), *(f'{name}={_show(value)}' for name, value in kwargs.items())])})"


def _show(structure: Mapping[str, Any]) -> str:
    ((kind, value),) = structure.items()
    if kind == "dict":
        return f"{{{', '.join(f'{key!r}: {_show(item)}' for key, item in value)}}}"
    if kind in ("tuple", "list"):
        items = ", ".join(map(_show, value))
        return f"[{items}]" if kind == "list" else f"({items},)"
    return str(value) if kind == "tensor" else repr(value)


def _constants(structure: Any) -> Iterator[Any]:
    """All constants of a structure, or of structures in lists and dicts."""
    for key, item in items_of(structure):
        if key == "constant":
            yield item
        yield from _constants(item)


def _keys(structure: Any) -> Iterator[Any]:
    """The keys of all dicts in a structure, or in structures in lists and dicts."""
    for key, item in items_of(structure):
        if key == "dict":
            yield from (own for own, _ in item)
        yield from _keys(item)


def _input_names(model: nn.Module, example: Inputs) -> list[str]:
    """The parameter of ``forward`` for each tensor, with the keys and indices below it; ``input`` for a lone tensor."""
    if len(example.args) == 1 and not example.kwargs and isinstance(example.args[0], Tensor):
        return ["input"]
    signature = forward_signature(model)
    names = list[str]()
    arguments = signature.bind(*example.args, **example.kwargs).arguments
    for name, value in arguments.items():
        is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        names += _paths(value, () if is_rest else (name,))
    return _unique(names, ())


def _output_names(output: Any, inputs: Sequence[str]) -> list[str]:
    """The key of each tensor, and ``output`` with an index for tensors without a key."""
    return _unique(_paths(output, () if isinstance(output, dict) else ("output",)), inputs)


def _paths(value: Any, path: tuple[str, ...]) -> list[str]:
    if isinstance(value, Tensor):
        return ["_".join(path)]
    return [name for key, item in items_of(value) for name in _paths(item, (*path, str(key)))]


def _unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    unique = list[str]()
    for name in names:
        name = name or "_"  # of an empty key
        while name in unique or name in taken:
            name += "_output" if name in taken else "_"
        unique.append(name)
    return unique
