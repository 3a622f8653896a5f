"""Programs of executorch for its XNNPACK backend, in float and in int8.

The file is a program as the runtimes of executorch on phones and boards load it, with two methods besides ``forward``:
``metadata`` gives the JSON of every format, ``sizes`` the sizes of inputs that the program holds for, which the runtime
itself does not check. The checksum stands behind the program, where the runtime does not look.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int, statically_known_true

from .._utils.exporting import any_size
from ._comparing import dynamic_sizes
from ._kinds import Kind, kind_of, quantized_part
from ._metadata import input_shape_in
from ._sealing import seal_program, sealed_content
from ._sizes import checker, sizes_of

__all__ = ["check", "read", "write"]

_LARGEST_BATCH = 16
_METHODS = {"forward", "metadata", "sizes"}
_aten = torch.ops.aten


def check(model: nn.Module) -> None:
    """Raises ``TypeError`` for int8 that XNNPACK does not compute."""
    kind, part = kind_of(model), quantized_part(model)
    if kind is Kind.EAGER:
        raise TypeError(
            "model is eager int8, whose weights are packed for kernels of torch: quantize with engine='pt2e' and "
            "backend='xnnpack' for format='executorch', or use format='torchscript'"
        )
    if kind is Kind.PT2E and part is not None and part.backend != "xnnpack":
        raise TypeError(
            f"model is int8 for {part.backend}, with unsigned activations, which XNNPACK would compute in float: "
            "quantize with backend='xnnpack' for format='executorch', or use format='pt2', 'aoti' or 'onnx-qdq'"
        )


def write(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Writes a program for batches of up to 16, and for images of up to twice the sides of those in ``example``.

    Executorch wants bounds: what lies between kernels is planned for the largest input. Where ``example`` is a batch
    of 16 or more, the bound is one more than it has.

    Errors: ``ImportError`` without executorch; ``RuntimeError`` where the model cannot be exported or lowered.
    """
    _check_installed()
    program = _exported(model, example, _largest(model, example), input_shape_in(metadata))
    least, most = _bounds(program)
    if least[0] == 2:  # the least that torch ever says; where a forward asks for it, that is among the rules as well
        least[0] = 1
    methods = {"metadata": metadata, "sizes": sizes_of(program, least, most)}
    _use_means(program)
    with _quiet():
        from executorch import exir
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.runtime import Runtime

        # Inputs are read where they lie; a place for the largest one would be reserved in vain.
        config = exir.ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
        try:
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=methods
            )
            _restore_ranges(edge.exported_program(), program)
            content = edge.to_executorch(config).buffer
        except Exception as error:  # its passes raise plain Exceptions
            raise RuntimeError(f"executorch cannot lower the model: {_reason(error)}") from error
        planned = list(Runtime.get().load_program(content).metadata("forward").input_tensor_meta(0).sizes())
    if planned != most:
        raise RuntimeError(f"executorch planned for inputs of up to {planned}, not of up to {most}")
    path.write_bytes(seal_program(content))


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """The program as a function of a contiguous input, and its metadata.

    Errors: ``ImportError`` without executorch; ``ValueError`` for a truncated, altered or foreign file.
    """
    # First: the runtime would run altered weights, and end the process on some other bytes.
    content = sealed_content(path)
    _check_installed()
    with _quiet():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(content)
        if not program.method_names >= _METHODS:
            raise ValueError(f"{path} has no method {min(_METHODS - program.method_names)} as deploy.export writes it")
        metadata, sizes = (str(program.load_method(name).execute([])[0]) for name in ("metadata", "sizes"))
    return _function(program, sizes), metadata


def _function(program: Any, sizes: str) -> Callable[[Tensor], Tensor]:
    check_sizes = checker(sizes)
    lock = threading.Lock()  # all calls share the memory of what lies between kernels

    def run(input: Tensor) -> Tensor:
        check_sizes(tuple(input.shape))
        with lock:
            # Asked for each time: a method does not keep the program alive whose bytes it reads.
            (output,) = program.load_method("forward").execute([input])
        return output

    return run


def _largest(model: nn.Module, example: Tensor) -> list[int]:
    """The largest size of each dimension that may have several; no smaller than what a file is compared on."""
    _, other = dynamic_sizes(model, example)
    compared = example.shape if other is None else other.shape
    sides = [max(2 * size, compared[i]) for i, size in enumerate(example.shape)]
    return [max(_LARGEST_BATCH, len(example) + 1), *sides[1:]]


def _exported(model: nn.Module, example: Tensor, most: list[int], sizes: list[int | None]) -> ExportedProgram:
    model = copy.deepcopy(model)
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.contiguous()  # the lowering takes no weights in channels_last
    # Exporting takes a size of one for a constant; two of a larger batch are enough.
    pair = torch.cat([example, example])[:2].contiguous()
    free = {i: Dim.AUTO(max=most[i]) for i, size in enumerate(sizes) if size is None}
    try:
        with any_size():
            program = torch.export.export(model, (pair,), dynamic_shapes=(free,))
        if (
            0 in free and _bounds(program)[0][0] > 1
        ):  # layouts of some kernels depend on it; without, torch overlooks that
            program = torch.export.export(model, (pair,), dynamic_shapes=(free,))
    except Exception as error:  # torch raises many kinds here
        raise RuntimeError(
            f"model cannot be exported as one graph: {_reason(error)}\nA forward must not depend on the values of "
            "tensors; format='torchscript' may take it."
        ) from error
    return program


def _input_shape(program: ExportedProgram) -> tuple[Any, ...]:
    (name,) = program.graph_signature.user_inputs
    shape: tuple[Any, ...] = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    return shape


def _bounds(program: ExportedProgram) -> tuple[list[int], list[int]]:
    """The smallest and the largest size of each dimension of the input."""
    least, most = [], []
    for size in _input_shape(program):
        bounds = None if is_concrete_int(size) else program.range_constraints[size.node.expr]
        least.append(int(size) if bounds is None else max(1, int(bounds.lower)))
        most.append(int(size) if bounds is None else int(bounds.upper))
    return least, most


def _restore_ranges(lowered: ExportedProgram, program: ExportedProgram) -> None:
    """Undoes what lowering did to the ranges of sizes.

    It has torch choose kernels and layouts for the sizes of the example, and torch notes for which it would choose the
    same: batches below 16, maps of one pixel. Nothing of that choice goes into the program.
    """
    for size in _input_shape(lowered):
        if not is_concrete_int(size):
            size.node.shape_env.var_to_range[size.node.expr] = program.range_constraints[size.node.expr]


def _use_means(program: ExportedProgram) -> None:
    """Puts ``mean`` where our layers divide a sum over pixels, for which XNNPACK has no kernel; in place."""
    graph = program.graph
    for node in list(graph.nodes):
        total: Any = node.args[0] if node.target is _aten.div.Tensor else None
        if not isinstance(total, fx.Node) or total.target is not _aten.sum.dim_IntList:
            continue
        source: Any = total.args[0]
        dims: Any = total.args[1]
        count = node.args[1].meta["val"] if isinstance(node.args[1], fx.Node) else node.args[1]
        pixels: Any = 1
        for dim in dims:
            pixels = pixels * source.meta["val"].shape[dim]
        if isinstance(count, Tensor) or not statically_known_true(count == pixels):
            continue
        with graph.inserting_before(node):
            mean = graph.call_function(_aten.mean.dim, (source, list(dims), *total.args[2:3]))
        mean.meta = node.meta.copy()
        node.replace_all_uses_with(mean)
        for output in program.graph_signature.output_specs:
            if output.arg.name == node.name:
                output.arg.name = mean.name
        graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _reason(error: BaseException) -> str:
    """What went wrong first, in a line: passes of executorch name themselves and hide it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _check_installed() -> None:
    if find_spec("executorch") is None:
        raise ImportError("format='executorch' needs executorch: pip install executorch")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what executorch warns about itself, about which a caller of ours can do nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"executorch\.")
        warnings.filterwarnings("ignore", message="open_text is deprecated", category=DeprecationWarning)
        yield
