"""Checks of int8 modules (the eager engine): twins after calibration and after training, on every backend."""

import copy
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._case import Case, PerLayerCache
from .._check import NotApplicable, check
from ._not_applicable import CPU_ONLY, NO_TWIN
from ._quantization import (
    assert_close,
    assert_copies_are_equal,
    assert_weighted_is_int8,
    calibration,
    trained_to_int8,
)

if TYPE_CHECKING:
    from ...quantized import Report

__all__ = ["int8_io", "ptq_eager", "qat_eager"]

BACKENDS = ("x86", "onednn", "qnnpack")

NO_BACKEND = NotApplicable(
    "not in torch.backends.quantized.supported_engines of this machine",
    lambda case: case.variant not in torch.backends.quantized.supported_engines,
)


@PerLayerCache
def _int8(case: Case) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, its int8 form and the calibration inputs."""
    from ... import quantized

    layer, batches = case.layer(), calibration(case.sample)
    return layer, quantized.quantize(layer, batches, backend=case.variant), torch.cat(batches)


def _after_convolutions(layer: nn.Module, input: Tensor) -> set[str]:
    """Paths of the SiLUs that follow a 2-d convolution, or its batch norm."""
    layer = copy.deepcopy(layer).eval()
    conv_outputs: list[tuple[Tensor, int]] = []
    paths: set[str] = set()
    follows_conv = False

    def before(path: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal follows_conv
        # In-place arithmetic returns the same tensor with another version.
        follows_conv = any(x is tensor and x._version == version for x in inputs for tensor, version in conv_outputs)
        if follows_conv and isinstance(module, nn.SiLU):
            paths.add(path)

    def after(module: nn.Module, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) or (follows_conv and isinstance(module, nn.BatchNorm2d)):
            conv_outputs.append((output, output._version))

    for path, module in layer.named_modules():
        module.register_forward_pre_hook(lambda module, args, path=path: before(path, module, args[:1]))
        module.register_forward_hook(lambda module, args, output: after(module, output))
    layer(input)
    return paths


def _assert_is_int8(case: Case, layer: nn.Module, report: "Report") -> None:
    """Assert that every convolution and linear layer is int8, and that only declared classes are float fallbacks.

    On onednn, a SiLU is int8 if it is fused into the convolution before it.
    """
    if case.sample.is_island:
        assert [row.runs_in for row in report.rows] == ["float"], f"is_island=True, but the report is\n{report}"
        return
    assert any(row.runs_in == "int8" for row in report.rows), "no module is int8"
    assert_weighted_is_int8(layer, report)
    # Stubs of the twin itself have no class before quantization.
    in_float = {row.path: row.before for row in report.rows if row.runs_in == "float" and row.before}
    fallbacks = {kind.__name__ for kind in case.sample.islands}
    if case.variant == "qnnpack":  # whose ReLU6 kernel is wrong unless fused into a convolution or linear layer
        in_float = {path: before for path, before in in_float.items() if before != "ReLU6"}
    if case.variant == "onednn" and "SiLU" in fallbacks:
        fused = _after_convolutions(layer, case.input())
        expected = {row.path for row in report.rows if row.before == "SiLU"} - fused
        actual = {path for path, before in in_float.items() if before == "SiLU"}
        assert actual == expected, f"SiLU is in float at {sorted(actual)}, expected at {sorted(expected)}"
        fallbacks -= {"SiLU"} - {in_float[path] for path in actual}
    assert set(in_float.values()) == fallbacks, f"in float: {sorted(in_float.values())}, declared: {sorted(fallbacks)}"


@check("ptq_eager", variants=BACKENDS, not_applicable=(CPU_ONLY, NO_TWIN, NO_BACKEND))
def ptq_eager(case: Case) -> None:
    """Calibrated and converted, the layer runs in int8 close to float, at other sizes and for empty batches too."""
    from ... import quantized

    layer, model, x = _int8(case)
    report = quantized.report(model)
    _assert_is_int8(case, layer, report)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    assert not any(module._parameters for module in weighted)
    # Lower bounds on x86, which has fewer weight levels, and for each float fallback, which quantizes once more.
    fallbacks = sum(row.runs_in == "float" for row in report.rows)
    assert_close(model(x), layer(x), 28 if case.variant == "x86" else 35 - fallbacks, "to float")
    other = case.other_input(33)
    assert_close(model(other), layer(other), 25, "to float at another size")
    assert model(x[:0]).shape == (0, *layer(x).shape[1:])


def _trains(case: Case) -> bool:
    from ... import quantized

    return bool(list(quantized.prepare_qat(case.layer(), backend=case.variant).parameters()))


NOTHING_TO_TRAIN = NotApplicable(
    "is a float fallback without parameters", lambda case: case.sample.is_island and not _trains(case)
)


@check("qat_eager", variants=BACKENDS, not_applicable=(CPU_ONLY, NO_TWIN, NO_BACKEND, NOTHING_TO_TRAIN))
def qat_eager(case: Case) -> None:
    """After training with fake quantization, with a save and resume, int8 outputs equal those of training."""
    from ... import quantized

    layer, batches = case.layer(), calibration(case.sample)
    model, other = (quantized.prepare_qat(start, backend=case.variant) for start in (layer, case.layer()))
    converted = trained_to_int8(model, other, batches)
    _assert_is_int8(case, layer, quantized.report(converted))
    x = torch.cat(batches)
    # Both round with the same scales, except that int8 kernels for sums, products and sigmoids round on their own.
    assert_close(converted(x), model.eval()(x), 38, "between training and int8")


# torch.jit is deprecated, and so are the storages that loading an int8 state dict uses. Both still work.
@check(
    "int8_io",
    variants=BACKENDS,
    not_applicable=(CPU_ONLY, NO_TWIN, NO_BACKEND),
    ignored_warnings=(
        (r"`torch\.jit", FutureWarning),
        (r"`torch\.jit", DeprecationWarning),
        ("TypedStorage is deprecated", UserWarning),
    ),
)
def int8_io(case: Case) -> None:
    """A script, a state dict and a deep copy of the int8 form are bit-equal to it, for empty batches too."""
    from ... import quantized

    _, model, x = _int8(case)
    expected = model(x)
    assert_copies_are_equal(model, quantized.quantize(case.layer(), [3 * x[:4]], backend=case.variant), x)

    script = io.BytesIO()
    torch.jit.save(torch.jit.script(model), script)
    script.seek(0)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = case.variant  # a deployed process sets this once
    try:
        loaded = torch.jit.load(script)
        assert torch.equal(loaded(x), expected), "outputs of the script differ"
        assert loaded(x[:0]).shape == (0, *expected.shape[1:])
    finally:
        torch.backends.quantized.engine = engine
