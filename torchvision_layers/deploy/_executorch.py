"""Programs of executorch for its XNNPACK backend, in float and in int8.

The file is a program as the runtimes of executorch on phones and boards load it, with two methods besides ``forward``:
``metadata``, which gives JSON, and ``sizes``, which gives the sizes of input that the program holds for. Behind the
program, where the runtime does not look, stands its SHA-256: ``head -c -72 model.pte | sha256sum`` shows it.
"""

import copy
import hashlib
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
from torch.fx.experimental.symbolic_shapes import is_concrete_int, statically_known_true

from ..quantized import QuantizableGraph, QuantizableModel
from ._sizes import checker, sizes_of

__all__ = ["check", "read", "write"]

#: Executorch reserves memory for the largest input; what it is comes from here.
_LARGEST_BATCH = 32
_LARGEST_GROWTH = 2

_MAGIC = b"ET12"
_DIGEST_SIZE = len(b"sha256:") + 64 + len(b"\n")
_aten = torch.ops.aten


def check(model: nn.Module) -> None:
    """Raises ``TypeError`` for int8 that XNNPACK does not compute, and for models on their way to int8."""
    if not isinstance(model, (QuantizableGraph, QuantizableModel)):
        return
    if model.prepared_for and not model.packed_for:
        raise TypeError("format='executorch' takes float and int8 models; this one is prepared: convert it first")
    if isinstance(model, QuantizableModel) and model.packed_for:
        raise TypeError(
            "format='executorch' takes no int8 modules of the engine 'eager', which hold weights packed for this "
            "machine; quantize with engine='pt2e' and backend='xnnpack', or use format='torchscript'"
        )
    if isinstance(model, QuantizableGraph) and model.packed_for != "xnnpack":
        raise TypeError(
            f"format='executorch' takes int8 graphs of backend 'xnnpack', got one of {model.packed_for!r}: its "
            "activations are unsigned, those of XNNPACK are signed, so that all would run in float; quantize with "
            "backend='xnnpack', or use format='pt2', 'aoti' or 'onnx-qdq'"
        )


def write(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Writes a program for batches of up to 32 images, and images of up to twice the sides of the example.

    A batch may have more where the example has more. Sizes that the ``forward`` fixes, or that torch takes for fixed on
    seeing the example, stay fixed.

    Args:
        model: float, or an int8 graph of backend ``"xnnpack"``.
        example: an input in float32.
        path: where the program goes.
        metadata: JSON text.

    Errors: ``ImportError`` without executorch; ``RuntimeError`` where the model cannot be exported or lowered.
    """
    _check_installed()
    with _quiet(), torch.no_grad():
        from executorch import exir
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.runtime import Runtime

        program = _exported(model, example)
        least, most = _bounds(program)
        methods = {"metadata": metadata, "sizes": sizes_of(program, least, most)}
        _use_means(program)
        # Inputs are used where they lie: memory for the largest one would be reserved in vain.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        try:
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=methods
            )
            lowered = edge.to_executorch(exir.ExecutorchBackendConfig(memory_planning_pass=planning))
        except Exception as error:  # its passes raise plain Exceptions
            raise RuntimeError(f"executorch cannot lower the model: {_reason(error)}") from error
        data = lowered.buffer
        given = Runtime.get().load_program(data).metadata("forward").input_tensor_meta(0).sizes()
    if list(given) != most:
        raise RuntimeError(f"executorch made a program for inputs of up to {list(given)}, not of up to {most}")
    path.write_bytes(data + _digest(data))


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """The program in the file as a function, and its metadata.

    Errors: ``ImportError`` without executorch; ``ValueError`` for a truncated, altered or foreign file.
    """
    _check_installed()
    data = path.read_bytes()
    if data[4:8] != _MAGIC:
        raise ValueError(f"{path} is not a program of executorch")
    digest = data[-_DIGEST_SIZE:]
    if not (digest.startswith(b"sha256:") and digest.endswith(b"\n")):
        raise ValueError(f"{path} is truncated, or not written by export: it does not end in a digest")
    # The runtime itself would run altered weights, and end the process on some other bytes.
    if digest != _digest(memoryview(data)[:-_DIGEST_SIZE]):
        raise ValueError(f"{path} was altered after it was written: its digest is another")
    with _quiet():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(data)
        if not {"forward", "metadata", "sizes"} <= program.method_names:
            raise ValueError(f"{path} was not written by export: it has no metadata or no sizes")
        (metadata,), (sizes,) = (program.load_method(name).execute([]) for name in ("metadata", "sizes"))
    return _function(program, sizes), metadata


def _function(program: Any, sizes: str) -> Callable[[Tensor], Tensor]:
    check_sizes = checker(sizes)
    # All calls share the memory of what lies between operators.
    lock = threading.Lock()

    def run(input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) or input.dtype != torch.float32 or input.device.type != "cpu":
            kind = f"{input.dtype} on {input.device}" if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"input must be a float32 tensor on the CPU, got {kind}")
        if input.dim() > 0 and input.shape[0] == 0:
            return run(input.new_zeros((1, *input.shape[1:])))[:0]  # XNNPACK has no empty batches
        check_sizes(tuple(input.shape))
        with lock:  # through the program: it owns the bytes that a method reads, which does not keep it alive
            # Of channels_last the runtime would read the memory as if it were contiguous.
            (output,) = program.load_method("forward").execute([input.detach().contiguous()])
        return output

    return run


def _exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    model = copy.deepcopy(model)
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.contiguous()  # the lowering takes no weights in channels_last
    # Of the largest batch, since torch notes upper bounds for what it would choose for smaller ones; nothing runs on it.
    batch = max(_LARGEST_BATCH, example.shape[0])
    largest = example.new_empty((batch, *example.shape[1:]))
    free = {i: torch.export.Dim.AUTO(max=_LARGEST_GROWTH * size) for i, size in enumerate(example.shape)}
    free[0] = torch.export.Dim.AUTO(max=batch)
    try:
        return torch.export.export(model, (largest,), dynamic_shapes=(free,))
    except Exception as error:  # torch raises many kinds here
        raise RuntimeError(f"model cannot be exported as one graph: {_reason(error)}") from error


def _bounds(program: torch.export.ExportedProgram) -> tuple[list[int], list[int]]:
    """The smallest and the largest size of each dimension of the input."""
    (name,) = program.graph_signature.user_inputs
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    least, most = [], []
    for i, size in enumerate(shape):
        if is_concrete_int(size):
            least.append(int(size))
            most.append(int(size))
            continue
        bounds = program.range_constraints[size.node.expr]
        # Torch never says one, for which it would have to look twice.
        least.append(1 if i == 0 and int(bounds.lower) <= 2 else int(bounds.lower))
        most.append(int(bounds.upper))
    return least, most


def _use_means(program: torch.export.ExportedProgram) -> None:
    """Puts ``mean`` where our layers divide a sum over pixels, for which XNNPACK has no kernel, in place."""
    graph = program.graph
    for node in list(graph.nodes):
        total = node.args[0] if node.target in (_aten.div.Tensor, _aten.div.Scalar) else None
        if not isinstance(total, fx.Node) or total.target is not _aten.sum.dim_IntList or len(total.users) != 1:
            continue
        source, dims = total.args[0], total.args[1]
        pixels = 1
        for dim in dims:
            pixels = pixels * source.meta["val"].shape[dim]
        count = node.args[1].meta.get("val") if isinstance(node.args[1], fx.Node) else node.args[1]
        if isinstance(count, Tensor) or not statically_known_true(count == pixels):
            continue
        with graph.inserting_before(node):
            mean = graph.call_function(_aten.mean.dim, (source, list(dims), *total.args[2:3]))
        mean.meta = node.meta.copy()
        node.replace_all_uses_with(mean, propagate_meta=False)
        for output in program.graph_signature.output_specs:
            if output.arg.name == node.name:
                output.arg.name = mean.name
        graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _digest(data: bytes | memoryview) -> bytes:
    return f"sha256:{hashlib.sha256(data).hexdigest()}\n".encode()


def _reason(error: Exception) -> str:
    """The first line of what went wrong first: passes of executorch name themselves and hide it."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _check_installed() -> None:
    if find_spec("executorch") is None:
        raise ImportError("format='executorch' needs executorch: pip install executorch")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what executorch and torchao warn about themselves, about which a caller of ours can do nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"executorch\.")
        warnings.filterwarnings("ignore", message="open_text is deprecated", category=DeprecationWarning)
        yield
