"""A model as a program of torch.export for every size that the model accepts."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ..._utils.exporting import as_module, export_program, gives_results_of, prime_from
from ..._utils.inputs import Inputs, accepts
from ..._utils.safe_names import safe_names
from ..._utils.size_limit import SizeLimit
from ..._utils.structure import flatten
from .._inputs import other_batch, resize
from .._running import run_model
from .._signature import forward_signature, items_of, plain
from .._subject import Subject
from .size_rules import always_holds, can_store, holds, size_rules

__all__ = [
    "drop_broken_guards",
    "export_fixed",
    "export_subject",
    "input_shapes",
    "plain_calls",
    "root_cause",
    "rules_to_check",
    "sources",
    "with_program",
]

#: Functions of fractions of sizes, which torch.export cannot save.
_FRACTIONAL = {math.ceil, math.floor, round}


class _FixedImagesError(RuntimeError):
    """The program takes only images of the example's height or width."""


def with_program(
    subject: Subject, export: Callable[[Subject], ExportedProgram], *, may_be_slow: bool = False
) -> Subject:
    """The subject with the program that ``export`` makes of it.

    If an export for all image sizes is impossible or, unless it ``may_be_slow``, slow, if no file could hold it, or if
    it gives other values for some, it is for those of the example, with a warning.

    Errors: ``RuntimeError`` if an export for the sizes of the example is impossible, too.
    """
    if not subject.has_variable_images:
        return replace(subject, program=export(subject))
    failure: RuntimeError | None = None
    try:
        # The branch for sizes that nothing divides, such as one that pads to a multiple, often holds for all others.
        for has_prime_trace in (False, True):
            limit = SizeLimit()
            with nullcontext() if may_be_slow else limit:
                program = export(replace(subject, has_prime_trace=has_prime_trace))
            if not _is_storable(program, subject):
                reason = "computes sizes in a way that a file cannot store"
                break
            if subject.lowered is not None or _is_right_without_guards(program, subject):
                return replace(subject, program=program)
            reason = "computes something else for some sizes"
    except _FixedImagesError:
        reason = "computes sizes in a way that torch.export takes for constants"
    except RuntimeError as error:
        reason = "computes sizes in a way that makes an export for all sizes slow"
        if not limit.is_exceeded:
            failure, reason = error, "computes sizes in a way that torch.export does not take"
    subject = subject.with_fixed_images()
    if subject.lowered is None:
        run_model(subject.model, subject.example)  # fills caches, such as position embeddings, for these sizes again
    try:
        program = export(subject)
    except RuntimeError:
        if failure is not None:
            raise failure from failure.__cause__
        raise
    shapes = [spec.shape[2:] for spec in subject.signature.inputs if len(spec.shape) > 2]
    sizes = " and ".join(dict.fromkeys(" x ".join(map(str, shape)) for shape in shapes))
    warnings.warn(f"the file takes images of {sizes} only: the forward of the model {reason}", stacklevel=4)
    return replace(subject, program=program)


def _is_storable(program: ExportedProgram, subject: Subject) -> bool:
    """Whether a file can hold the sizes that a program checks and computes, without fractions such as ``h / 2``."""
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return targets.isdisjoint(_FRACTIONAL) and can_store(program._guards_code, sources(subject))


def _is_right_without_guards(program: ExportedProgram, subject: Subject) -> bool:
    """Drops the guards that inputs of the comparison break, if the program then gives the values of the model."""
    guards = program._guards_code
    if all(gives_results_of(program, subject.model, inputs) for inputs in drop_broken_guards(program, subject)):
        return True
    program._guards_code = guards
    return False


def drop_broken_guards(program: ExportedProgram, subject: Subject) -> list[Inputs]:
    """Drops the guards that inputs of the comparison break, and returns these inputs."""
    compared = subject.compared
    rules = size_rules(program, sources(subject))
    results = [[holds(rule, inputs.shapes()) for rule in rules] for inputs in compared]
    program._guards_code = [code for code, *held in zip(program._guards_code, *results, strict=True) if all(held)]
    return [inputs for inputs, held in zip(compared, results, strict=True) if not all(held)]


def export_subject(subject: Subject, has_flat_output: bool = False, *, runs_single: bool = True) -> ExportedProgram:
    """The program of a model for inputs of the sizes in its signature, without traces of the source code.

    With ``has_flat_output``, it returns a tuple of tensors. ``runs_single`` is that of :func:`export_program`.

    Errors: ``RuntimeError`` if the model cannot be exported, or only for fewer sizes.
    """
    specs = subject.signature.inputs
    dims = [{i: torch.export.Dim.AUTO for i, size in enumerate(s.shape) if isinstance(size, str)} for s in specs]
    with plain_calls(subject, has_flat_output):
        advice = "format='torchscript' may take it. "
        program = export_program(subject.model, _example_pair(subject), dims, advice, runs_single=runs_single)
    for spec, shape in zip(specs, input_shapes(program), strict=True):
        for i, size in enumerate(shape):
            if isinstance(spec.shape[i], str) and is_concrete_int(size):
                name = "the input" if subject.signature.has_one_input else f"the input {spec.name!r}"
                raise (_FixedImagesError if i > 1 else RuntimeError)(
                    f"torch.export fixes dimension {i} of {name}, although the model accepts other sizes: its forward "
                    "uses that size as a Python number; use format='torchscript'"
                )
    for graph in [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]:
        for node in graph.nodes:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
                node.meta.pop(key, None)  # notes about the source, with paths of this machine, a third of the file
    return program


def export_fixed(subject: Subject, format: str) -> Subject:
    """The subject with its program for inputs of the example's sizes, which returns tensors in a tuple.

    Errors: ``TypeError`` for inputs that are not tensors; ``RuntimeError`` if the model cannot be exported.
    """
    if subject.signature.has_constants:
        raise TypeError(f"format={format!r} takes tensors only, not numbers, strings or None: use format='pt2'")
    subject = subject.with_fixed_sizes()
    example = subject.example
    model = as_module(subject.model)
    try:
        with plain_calls(replace(subject, model=model), has_flat_output=True), safe_names(model):
            program = torch.export.export(model, example.args, example.kwargs)
    except Exception as error:  # torch raises many types here
        raise RuntimeError(f"model cannot be exported as one graph: {root_cause(error)}") from error
    return replace(subject, program=program)


def input_shapes(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """The sizes of each input tensor of a program."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [name for name in program.graph_signature.user_inputs if name in placeholders]  # others are constants
    return [tuple(placeholders[str(name)].meta["val"].shape) for name in names]


@contextmanager
def plain_calls(subject: Subject, has_flat_output: bool) -> Iterator[None]:
    """Lets the model return plain containers, or a tuple of tensors, and take inputs by the names of its ``forward``.

    torch.export stores no dataclasses, and its guards fail for a ``forward`` with ``**kwargs``.
    """
    model = subject.model
    own_forward = vars(model).get("forward")

    def convert(module: object, args: object, output: Any) -> Any:
        return tuple(flatten(output)[0]) if has_flat_output else plain(output)

    handle = None if subject.signature.has_one_output else model.register_forward_hook(convert)
    signature = _named_signature(subject)
    if signature != inspect.signature(model.forward):
        forward: Any = partial(model.forward)
        forward.__signature__ = signature
        model.forward = forward
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own_forward is not None:
            model.forward = own_forward
        if handle is not None:
            handle.remove()


def _named_signature(subject: Subject) -> inspect.Signature:
    """The signature of ``forward`` with the keyword inputs of the example in place of ``**kwargs``."""
    signature = forward_signature(subject.model)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(parameters) == len(signature.parameters):
        return signature
    names = [name for name in subject.example.kwargs if name not in signature.parameters]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    return inspect.Signature(parameters)


def sources(subject: Subject) -> list[str]:
    """The name of each input tensor in the guards of a program."""

    def walk(value: Any, source: str) -> list[str]:
        if isinstance(value, Tensor):
            return [source]
        return [name for key, item in items_of(value) for name in walk(item, f"{source}[{key!r}]")]

    arguments = _named_signature(subject).bind(*subject.example.args, **subject.example.kwargs).arguments
    return [name for key, value in arguments.items() for name in walk(value, f"L[{key!r}]")]


def rules_to_check(program: ExportedProgram, subject: Subject) -> list[str]:
    """The rules for sizes that some sizes break, but no input of the comparison, which decides about the others."""
    shapes = [inputs.shapes() for inputs in subject.compared]
    rules = [rule for rule in size_rules(program, sources(subject)) if not always_holds(rule, shapes[0])]
    return [rule for rule in rules if all(holds(rule, shape) for shape in shapes)]


def _example_pair(subject: Subject) -> Inputs:
    """Two inputs to trace with, because torch.export treats a size of 1 as a constant, with larger images if possible.

    If features shrank to one pixel, Inductor would choose a memory layout that is valid for that size only.
    """
    example = subject.example
    if not subject.is_batch_variable:
        return example
    if subject.batch_size == 1:
        example = other_batch(example, 2)
    shapes = [spec.shape for spec in subject.signature.inputs]
    factors = (4, 2, 1) if subject.has_prime_trace else (4, 2)
    for factor in factors if any(isinstance(size, str) for shape in shapes for size in shape[2:]) else ():

        def sizes(i: int, shape: torch.Size, factor: int = factor) -> list[int]:
            grown = [factor * size for size in shape]
            if subject.has_prime_trace:
                grown = [prime_from(size, skipped=max(0, dim - 2)) for dim, size in enumerate(grown)]
            is_variable = [dim >= 2 and isinstance(size, str) for dim, size in enumerate(shapes[i])]
            return [new if varies else old for new, old, varies in zip(grown, shape, is_variable, strict=True)]

        images = resize(example, sizes)
        # The program of a lowered model has weights that are not packed, with which its operators must not run.
        model = subject.lowered or subject.model
        if max(size for tensor in images.tensors() for size in tensor.shape[2:]) <= 256 and accepts(model, images):
            return images
    return resize(example, lambda i, shape: shape)


def root_cause(error: BaseException) -> str:
    """The first error in one line; exporters chain their own errors to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
