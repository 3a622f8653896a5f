"""Checks of programs: traced, scripted, compiled, exported, run by other runtimes."""

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._case import Case, PerLayerCache, loss_of, run_seeded
from .._check import Tier, check
from ._not_applicable import TRAIN_EVAL, lacks, trainable

__all__ = ["aoti", "compiled", "exported", "fx", "inductor", "onnx", "script"]


@check("fx", variants=TRAIN_EVAL)
def fx(case: Case) -> None:
    """Traced as part of a model and pickled, the layer has equal outputs at other sizes too."""
    layer = case.layer()
    traced = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(nn.Sequential(copy.deepcopy(layer)))))
    for input in (case.input(), case.other_input(4)):
        torch.testing.assert_close(run_seeded(traced, input), run_seeded(layer, input), rtol=1e-6, atol=1e-6)


# torch.jit is deprecated, but existing C++ programs load its files.
@check(
    "script",
    variants=TRAIN_EVAL,
    ignored_warnings=((r"`torch\.jit", FutureWarning), (r"`torch\.jit", DeprecationWarning)),
)
def script(case: Case) -> None:
    """Scripted, saved and loaded, the layer has equal outputs at other sizes too."""
    layer = case.layer()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(copy.deepcopy(layer)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for input in (case.input(), case.other_input(4)):
        torch.testing.assert_close(run_seeded(loaded, input), run_seeded(layer, input), rtol=1e-6, atol=1e-6)


def _check_compiled(case: Case, backend: str, stance: Any, tolerance: float, gradient_tolerance: float) -> None:
    torch.compiler.reset()
    layer = case.layer()
    inner = copy.deepcopy(layer)
    program = torch.compile(inner, fullgraph=True, backend=backend, dynamic=True)
    input = case.input().requires_grad_()
    twin = input.detach().clone().requires_grad_()
    output, expected = run_seeded(program, input), run_seeded(layer, twin)
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    loss_of(output).backward()
    loss_of(expected).backward()
    assert input.grad is not None
    assert twin.grad is not None
    scale = max(1.0, float(twin.grad.abs().max()))
    torch.testing.assert_close(input.grad, twin.grad, rtol=gradient_tolerance, atol=gradient_tolerance * scale)
    for (name, got), (_, want) in zip(trainable(inner), trainable(layer), strict=True):
        assert got.grad is not None, f"no gradient reaches {name}"
        scale = max(1.0, float(want.grad.abs().max()))  # type: ignore[union-attr]
        torch.testing.assert_close(got.grad, want.grad, rtol=gradient_tolerance, atol=gradient_tolerance * scale)
    with torch.compiler.set_stance(stance):
        for batch in (5, 15):  # torch's convolutions guard 2 <= N <= 15
            again = case.other_input(batch).requires_grad_()
            torch.testing.assert_close(
                run_seeded(program, again), run_seeded(layer, again), rtol=10 * tolerance, atol=10 * tolerance
            )


@check("compile", variants=TRAIN_EVAL)
def compiled(case: Case) -> None:
    """Compiled into one graph, outputs and gradients agree, and other sizes (N = 2 to 15) do not recompile."""
    # In eval mode, the captured graph runs without AOTAutograd, which the training variant covers.
    backend = "aot_eager" if case.training else "eager"
    # Numbers of a layer become constants of its program. By default, torch first compiles them as inputs and then
    # restarts, which the check `inductor` covers.
    with torch._dynamo.config.patch(specialize_float=True):
        _check_compiled(case, backend, "fail_on_recompile", 1e-6, 1e-5)


@check("inductor", tier=Tier.NIGHTLY, variants=TRAIN_EVAL)
def inductor(case: Case) -> None:
    """Compiled by Inductor, outputs and gradients agree, at other sizes too."""
    with torch._inductor.config.patch(fallback_random=True):  # otherwise dropout draws other numbers than in eager mode
        # For nn.Conv1d and nn.Conv3d, Inductor itself recompiles the backward pass at other sizes.
        _check_compiled(case, "inductor", "default", 1e-5, 1e-4)


@PerLayerCache
def _export(case: Case) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """A layer and its program, which all checks of exported programs share."""
    layer = case.layer()
    return layer, torch.export.export(copy.deepcopy(layer), (case.input(),), dynamic_shapes=case.dynamic_shapes)


def export_program(case: Case) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """A layer and its program in eval mode."""
    return _export(replace(case, variant="eval"))


@check("export", variants=TRAIN_EVAL)
def exported(case: Case) -> None:
    """Exported with dynamic sizes, saved and loaded, the layer has equal outputs at other sizes too."""
    layer, program = _export(case)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (3, 17):
        input = case.other_input(batch)
        torch.testing.assert_close(run_seeded(loaded, input), run_seeded(layer, input), rtol=1e-5, atol=1e-5)


NO_ONNX = lacks("onnx", "onnxscript", "onnxruntime")


def in_onnx(
    case: Case, model: nn.Module | torch.export.ExportedProgram, example: Tensor, dynamic_shapes: Any = None
) -> tuple[Callable[[Tensor], Tensor], set[str]]:
    """A model as a function that onnxruntime runs, and its operators. A program has its dynamic sizes already."""
    import onnxruntime

    with torch.no_grad():
        program = torch.onnx.export(
            model, (example,), dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False, optimize=True
        )
    assert program is not None
    proto = program.model_proto
    providers: list[Any] = ["CPUExecutionProvider"]
    if case.device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=providers)
    (name,) = [node.name for node in session.get_inputs()]

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.cpu().numpy()})[0]).to(case.device)

    return call, {node.op_type for node in proto.graph.node}


@check("onnx", not_applicable=(NO_ONNX,))
def onnx(case: Case) -> None:
    """Exported to ONNX with dynamic sizes, outputs in onnxruntime are equal at three sizes, batch 1 included."""
    layer, program = export_program(case)
    call, _ = in_onnx(case, program, case.input())
    for input in (case.input(), case.other_input(1), case.other_input(5)):
        torch.testing.assert_close(call(input), layer(input).detach(), rtol=1e-5, atol=1e-5)


@check("aoti", tier=Tier.NIGHTLY)
def aoti(case: Case) -> None:
    """Compiled ahead of time into a package and loaded, the layer has equal outputs at other sizes."""
    layer, program = export_program(case)
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "layer.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for batch in (3, 17):
            input = case.other_input(batch)
            torch.testing.assert_close(loaded(input), layer(input), rtol=1e-5, atol=1e-5)
