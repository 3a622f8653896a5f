"""Rows on programs made of a layer: traced, scripted, compiled, exported, run elsewhere."""

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._cell import Cell, run_seeded
from .._row import Tier, row
from ._applies import TRAIN_EVAL, lacks, trainable

__all__ = ["aoti", "compiled", "exported", "fx", "inductor", "onnx", "script"]


@row("fx", variants=TRAIN_EVAL)
def fx(cell: Cell) -> None:
    """Traced symbolically as part of a model, and pickled, it gives the same values at sizes not seen before."""
    layer = cell.layer()
    traced = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(nn.Sequential(copy.deepcopy(layer)))))
    for input in (cell.input(), cell.other_input(4)):
        torch.testing.assert_close(run_seeded(traced, input), run_seeded(layer, input), rtol=1e-6, atol=1e-6)


# torch.jit is deprecated; it is what loads without Python in the C++ programs of today.
@row(
    "script",
    variants=TRAIN_EVAL,
    ignored_warnings=((r"`torch\.jit", FutureWarning), (r"`torch\.jit", DeprecationWarning)),
)
def script(cell: Cell) -> None:
    """Scripted, saved and loaded, it gives the same values at sizes not seen before."""
    layer = cell.layer()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(copy.deepcopy(layer)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for input in (cell.input(), cell.other_input(4)):
        torch.testing.assert_close(run_seeded(loaded, input), run_seeded(layer, input), rtol=1e-6, atol=1e-6)


def _check_compiled(cell: Cell, backend: str, stance: Any, tolerance: float, gradient_tolerance: float) -> None:
    torch.compiler.reset()
    layer = cell.layer()
    inner = copy.deepcopy(layer)
    program = torch.compile(inner, fullgraph=True, backend=backend, dynamic=True)
    input = cell.input().requires_grad_()
    twin = input.detach().clone().requires_grad_()
    output, expected = run_seeded(program, input), run_seeded(layer, twin)
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert input.grad is not None
    assert twin.grad is not None
    scale = max(1.0, float(twin.grad.abs().max()))
    torch.testing.assert_close(input.grad, twin.grad, rtol=gradient_tolerance, atol=gradient_tolerance * scale)
    for (name, got), (_, want) in zip(trainable(inner), trainable(layer), strict=True):
        assert got.grad is not None, f"no gradient reaches {name}"
        scale = max(1.0, float(want.grad.abs().max()))  # type: ignore[union-attr]
        torch.testing.assert_close(got.grad, want.grad, rtol=gradient_tolerance, atol=gradient_tolerance * scale)
    with torch.compiler.set_stance(stance):
        for batch in (5, 15):  # torch's convolutions guard 2 <= N <= 15; within, nothing is compiled again
            again = cell.other_input(batch).requires_grad_()
            torch.testing.assert_close(
                run_seeded(program, again), run_seeded(layer, again), rtol=10 * tolerance, atol=10 * tolerance
            )


@row("compile", variants=TRAIN_EVAL)
def compiled(cell: Cell) -> None:
    """Compiled into one graph, forward and backward agree, and other sizes (N = 2 to 15) do not compile again."""
    # Numbers of a layer are constants of its program. As an input of it, which torch tries first, an eps is found to be
    # one only after all has been compiled, which then begins anew; `inductor` leaves that to torch.
    with torch._dynamo.config.patch(specialize_float=True):
        _check_compiled(cell, "aot_eager", "fail_on_recompile", 1e-6, 1e-5)


@row("inductor", tier=Tier.NIGHTLY, variants=TRAIN_EVAL)
def inductor(cell: Cell) -> None:
    """Compiled to machine code by Inductor, forward and backward agree, at other sizes too."""
    with torch._inductor.config.patch(fallback_random=True):  # or its dropout draws other numbers than eager's
        # Inductor itself compiles the backward pass of nn.Conv1d and nn.Conv3d again for other sizes.
        _check_compiled(cell, "inductor", "default", 1e-5, 1e-4)


def _export(cell: Cell, layer: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(copy.deepcopy(layer), (cell.input(),), dynamic_shapes=cell.dynamic_shapes)


@row("export", variants=TRAIN_EVAL)
def exported(cell: Cell) -> None:
    """Exported with dynamic sizes, saved and loaded, it gives the same values at sizes not seen before."""
    layer = cell.layer()
    file = io.BytesIO()
    torch.export.save(_export(cell, layer), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (3, 17):
        input = cell.other_input(batch)
        torch.testing.assert_close(run_seeded(loaded, input), run_seeded(layer, input), rtol=1e-5, atol=1e-5)


NO_ONNX = lacks("onnx", "onnxscript", "onnxruntime")


def in_onnx(cell: Cell, model: nn.Module, example: Tensor) -> tuple[Callable[[Tensor], Tensor], set[str]]:
    """A model exported with dynamic sizes, as a function that onnxruntime runs, and the operators in it."""
    import onnxruntime

    with torch.no_grad():
        program = torch.onnx.export(
            model, (example,), dynamo=True, dynamic_shapes=cell.dynamic_shapes, verbose=False, optimize=True
        )
    assert program is not None
    proto = program.model_proto
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = [node.name for node in session.get_inputs()]
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), {n.op_type for n in proto.graph.node}


@row("onnx", not_applicable=(NO_ONNX,))
def onnx(cell: Cell) -> None:
    """Exported to ONNX with dynamic sizes, onnxruntime gives the same values at three sizes, a batch of one too."""
    layer = cell.layer()
    call, _ = in_onnx(cell, layer, cell.input())
    for input in (cell.input(), cell.other_input(1), cell.other_input(5)):
        torch.testing.assert_close(call(input), layer(input).detach(), rtol=1e-5, atol=1e-5)


@row("aoti", tier=Tier.NIGHTLY)
def aoti(cell: Cell) -> None:
    """Compiled ahead of time into a package and loaded from it, it gives the same values at other sizes."""
    layer = cell.layer()
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            _export(cell, layer), package_path=str(Path(folder) / "layer.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        for batch in (3, 17):
            input = cell.other_input(batch)
            torch.testing.assert_close(loaded(input), layer(input), rtol=1e-5, atol=1e-5)
