"""ExecuTorch programs for its XNNPACK backend, in float and in int8.

The file is a program for the ExecuTorch runtimes on phones and boards. It has two methods besides ``forward``:
``metadata`` returns the JSON of every format, and ``sizes`` returns the input sizes that the program is valid for. The
runtime itself does not check them.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ..._utils.exporting import any_size, as_module
from ..._utils.inputs import Inputs
from ..._utils.safe_names import safe_names
from .._inputs import other_batch, resize
from .._metadata import parse
from .._signature import Signature
from .._subject import Subject
from .program import input_shapes, plain_calls, root_cause, sources, with_program
from .size_rules import describe_sizes, size_check

__all__ = ["deserialize", "restrict", "serialize"]

_MIN_LARGEST_BATCH = 16
_METHODS = {"forward", "metadata", "sizes"}


def restrict(subject: Subject) -> Subject:
    """The subject with its program, and with fixed image sizes if an export for all of them would be slow.

    Errors: ``TypeError`` for inputs that are not tensors; ``RuntimeError`` if the model cannot be exported.
    """
    if subject.signature.has_constants:
        raise TypeError("format='executorch' takes tensors only, not numbers, strings or None: use format='pt2'")
    return with_program(subject, _export)


def serialize(subject: Subject, metadata: str) -> bytes:
    """A program for batches of up to 16, and for images of up to twice the sides of those in the example.

    Its inputs and outputs are the tensors of the model's in order, without their structure.

    ExecuTorch needs bounds because it plans the memory of intermediate results for the largest input. If the example is
    a batch of 16 or more, the bound is its size plus one.

    Errors: ``RuntimeError`` if the program cannot be lowered.
    """
    program = subject.program
    assert program is not None
    minimum, maximum = _bounds(program)
    for spec, least in zip(subject.signature.inputs, minimum, strict=True):
        if spec.shape[:1] == ("batch",) and least[0] == 2:  # torch never reports less; a rule says if two are required
            least[0] = 1
    methods = {"metadata": metadata, "sizes": describe_sizes(program, sources(subject), minimum, maximum)}
    with _without_warnings():
        from executorch import exir
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.runtime import Runtime

        # Inputs are read in place, so memory for the largest one would be wasted.
        config = exir.ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
        try:
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=methods
            )
            _restore_ranges(edge.exported_program(), program)
            content = edge.to_executorch(config).buffer
        except Exception as error:  # its passes raise plain Exceptions
            raise RuntimeError(f"executorch cannot lower the model: {root_cause(error)}") from error
        forward = Runtime.get().load_program(content).metadata("forward")
        planned = [list(forward.input_tensor_meta(i).sizes()) for i in range(len(maximum))]
    if planned != maximum:
        raise RuntimeError(f"executorch must plan memory for inputs of up to {maximum}, it planned for {planned}")
    return bytes(content)


def deserialize(content: bytes, path: Path) -> tuple[Callable[..., Any], str]:
    """The program as a function of contiguous inputs, and its metadata.

    Errors: ``ValueError`` if the program was not written by :func:`serialize`.
    """
    with _without_warnings():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(content)
        missing = _METHODS - program.method_names
        if missing:
            raise ValueError(f"{path} was not written by deploy.export: it has no method {min(missing)}")
        metadata, sizes = (str(program.load_method(name).execute([])[0]) for name in ("metadata", "sizes"))
    return _function(program, sizes, Signature.from_json(parse(metadata, path))), metadata


def _function(program: Any, sizes: str, signature: Signature) -> Callable[..., Any]:
    check_sizes = size_check(sizes, [spec.name for spec in signature.inputs])
    lock = threading.Lock()  # all calls share the memory of intermediate results

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = Inputs(args, kwargs).tensors()
        check_sizes([tuple(tensor.shape) for tensor in tensors])
        with lock:
            # Loaded for each call, because a method does not keep alive the program whose bytes it reads.
            return signature.restore(program.load_method("forward").execute(tensors))

    return run


def _export(subject: Subject) -> ExportedProgram:
    """The program of a model, with an upper bound for each variable size."""
    model = as_module(copy.deepcopy(subject.model))
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.contiguous()  # executorch cannot lower weights in channels_last
    # torch.export treats a size of 1 as a constant; two images of a larger batch are enough.
    pair = resize(other_batch(subject.example, 2), lambda i, shape: shape)
    shapes = [spec.shape for spec in subject.signature.inputs]
    collection = ShapesCollection()
    for tensor, shape, largest in zip(pair.tensors(), shapes, _largest_shapes(subject), strict=True):
        collection[tensor] = {i: Dim.AUTO(max=largest[i]) for i, size in enumerate(shape) if isinstance(size, str)}
    subject = replace(subject, model=model)
    try:
        with plain_calls(subject, has_flat_output=True), safe_names(model):
            dynamic_shapes = collection.dynamic_shapes(model, pair.args, pair.kwargs)
            with any_size():
                program = torch.export.export(model, pair.args, pair.kwargs, dynamic_shapes=dynamic_shapes)
            if any(least[0] > 1 for least, shape in zip(_bounds(program)[0], shapes, strict=True) if "batch" in shape):
                # The layouts of some kernels depend on the batch size; without `any_size` torch ignores that.
                program = torch.export.export(model, pair.args, pair.kwargs, dynamic_shapes=dynamic_shapes)
    except Exception as error:  # torch raises many types here
        raise RuntimeError(
            f"model cannot be exported as one graph: {root_cause(error)}\nA forward must not depend on the values of "
            "tensors; format='torchscript' may take it."
        ) from error
    return program


def _largest_shapes(subject: Subject) -> list[list[int]]:
    """The upper bound of each variable size, no smaller than the inputs that the file is compared on."""
    calls = [inputs.tensors() for inputs in (subject.example, *subject.resized)]
    bounds = []
    for i, spec in enumerate(subject.signature.inputs):
        sizes = zip(*(call[i].shape for call in calls), strict=True)
        bounds.append([max(2 * compared[0], *compared) for compared in sizes])
        if spec.shape[:1] == ("batch",):
            bounds[i][0] = max(_MIN_LARGEST_BATCH, subject.batch_size + 1)
    return bounds


def _bounds(program: ExportedProgram) -> tuple[list[list[int]], list[list[int]]]:
    """The smallest and the largest size of each dimension of each input."""
    minimum, maximum = list[list[int]](), list[list[int]]()
    for shape in input_shapes(program):
        bounds = [None if is_concrete_int(size) else program.range_constraints[size.node.expr] for size in shape]
        pairs = list(zip(shape, bounds, strict=True))
        minimum.append([int(size) if bound is None else max(1, int(bound.lower)) for size, bound in pairs])
        maximum.append([int(size) if bound is None else int(bound.upper) for size, bound in pairs])
    return minimum, maximum


def _restore_ranges(lowered: ExportedProgram, program: ExportedProgram) -> None:
    """Restores the ranges of sizes, which lowering narrows.

    Lowering lets torch choose kernels and layouts for the sizes of the example, and torch records the sizes that lead
    to the same choice: batches below 16, or maps of one pixel. The program does not depend on that choice.
    """
    for size in chain.from_iterable(input_shapes(lowered)):
        if not is_concrete_int(size):
            size.node.shape_env.var_to_range[size.node.expr] = program.range_constraints[size.node.expr]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings of executorch about itself, which a caller cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"executorch\.")
        warnings.filterwarnings("ignore", message="open_text is deprecated", category=DeprecationWarning)
        yield
