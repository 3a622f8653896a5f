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
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ..._utils.exporting import any_size
from .._subject import Subject
from .size_rules import describe_sizes, size_check

__all__ = ["deserialize", "serialize"]

_MIN_LARGEST_BATCH = 16
_METHODS = {"forward", "metadata", "sizes"}


def serialize(subject: Subject, metadata: str) -> bytes:
    """A program for batches of up to 16, and for images of up to twice the sides of those in the example.

    ExecuTorch needs bounds because it plans the memory of intermediate results for the largest input. If the example is
    a batch of 16 or more, the bound is its size plus one.

    Errors: ``RuntimeError`` if the model cannot be exported or lowered.
    """
    program = _export(subject)
    minimum, maximum = _bounds(program)
    if minimum[0] == 2:  # torch never reports less; if the forward requires two, a rule says so as well
        minimum[0] = 1
    methods = {"metadata": metadata, "sizes": describe_sizes(program, minimum, maximum)}
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
            raise RuntimeError(f"executorch cannot lower the model: {_root_cause(error)}") from error
        planned = list(Runtime.get().load_program(content).metadata("forward").input_tensor_meta(0).sizes())
    if planned != maximum:
        raise RuntimeError(f"executorch must plan memory for inputs of up to {maximum}, it planned for {planned}")
    return bytes(content)


def deserialize(content: bytes, path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """The program as a function of a contiguous input, and its metadata.

    Errors: ``ValueError`` if the program was not written by :func:`serialize`.
    """
    with _without_warnings():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(content)
        missing = _METHODS - program.method_names
        if missing:
            raise ValueError(f"{path} was not written by deploy.export: it has no method {min(missing)}")
        metadata, sizes = (str(program.load_method(name).execute([])[0]) for name in ("metadata", "sizes"))
    return _function(program, sizes), metadata


def _function(program: Any, sizes: str) -> Callable[[Tensor], Tensor]:
    check_size = size_check(sizes)
    lock = threading.Lock()  # all calls share the memory of intermediate results

    def run(input: Tensor) -> Tensor:
        check_size(tuple(input.shape))
        with lock:
            # Loaded for each call, because a method does not keep alive the program whose bytes it reads.
            (output,) = program.load_method("forward").execute([input])
        return output

    return run


def _export(subject: Subject) -> ExportedProgram:
    """The program of a model, with an upper bound for each variable size."""
    model = copy.deepcopy(subject.model)
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.contiguous()  # executorch cannot lower weights in channels_last
    # torch.export treats a size of 1 as a constant; two images of a larger batch are enough.
    pair = torch.cat([subject.example, subject.example])[:2].contiguous()
    maximum = _largest_shape(subject)
    dims = {i: Dim.AUTO(max=maximum[i]) for i, size in enumerate(subject.input_shape) if size is None}
    try:
        with any_size():
            program = torch.export.export(model, (pair,), dynamic_shapes=(dims,))
        if 0 in dims and _bounds(program)[0][0] > 1:
            # The layouts of some kernels depend on the batch size; without `any_size` torch ignores that.
            program = torch.export.export(model, (pair,), dynamic_shapes=(dims,))
    except Exception as error:  # torch raises many types here
        raise RuntimeError(
            f"model cannot be exported as one graph: {_root_cause(error)}\nA forward must not depend on the values of "
            "tensors; format='torchscript' may take it."
        ) from error
    return program


def _largest_shape(subject: Subject) -> list[int]:
    """The upper bound of each variable size, no smaller than the inputs that the file is compared on."""
    example = subject.example
    compared = example if subject.resized_example is None else subject.resized_example
    sides = [max(2 * size, compared.shape[i]) for i, size in enumerate(example.shape)]
    return [max(_MIN_LARGEST_BATCH, len(example) + 1), *sides[1:]]


def _input_shape(program: ExportedProgram) -> tuple[Any, ...]:
    (name,) = program.graph_signature.user_inputs
    shape: tuple[Any, ...] = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    return shape


def _bounds(program: ExportedProgram) -> tuple[list[int], list[int]]:
    """The smallest and the largest size of each dimension of the input."""
    minimum, maximum = [], []
    for size in _input_shape(program):
        bounds = None if is_concrete_int(size) else program.range_constraints[size.node.expr]
        minimum.append(int(size) if bounds is None else max(1, int(bounds.lower)))
        maximum.append(int(size) if bounds is None else int(bounds.upper))
    return minimum, maximum


def _restore_ranges(lowered: ExportedProgram, program: ExportedProgram) -> None:
    """Restores the ranges of sizes, which lowering narrows.

    Lowering lets torch choose kernels and layouts for the sizes of the example, and torch records the sizes that lead
    to the same choice: batches below 16, or maps of one pixel. The program does not depend on that choice.
    """
    for size in _input_shape(lowered):
        if not is_concrete_int(size):
            size.node.shape_env.var_to_range[size.node.expr] = program.range_constraints[size.node.expr]


def _root_cause(error: BaseException) -> str:
    """The first error in one line; passes of executorch chain their own errors to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings of executorch about itself, which a caller cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"executorch\.")
        warnings.filterwarnings("ignore", message="open_text is deprecated", category=DeprecationWarning)
        yield
