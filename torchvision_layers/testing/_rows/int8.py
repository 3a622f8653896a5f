"""Rows on int8 modules (the eager engine): layers with a twin, quantized after and in training, on every backend."""

import copy
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._cell import Cell
from .._row import NA, row
from ._applies import NO_TWIN
from ._quantizing import (
    Kept,
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

NO_BACKEND = NA(
    "not in torch.backends.quantized.supported_engines of this machine",
    lambda cell: cell.variant not in torch.backends.quantized.supported_engines,
)


@Kept
def _int8(cell: Cell) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, its int8 form and the inputs that calibrated it."""
    from ... import quantized

    layer, batches = cell.layer(), calibration(cell.sample)
    return layer, quantized.quantize(layer, batches, backend=cell.variant), torch.cat(batches)


def _behind_convolutions(layer: nn.Module, input: Tensor) -> set[str]:
    """Paths of the SiLUs that take what a convolution of images gives, through its batch norm or not."""
    layer = copy.deepcopy(layer).eval()
    straight: list[tuple[Tensor, int]] = []
    found: set[str] = set()
    is_straight = False

    def before(path: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal is_straight
        # Arithmetic in place gives the same tensor in another version.
        is_straight = any(x is tensor and x._version == version for x in inputs for tensor, version in straight)
        if is_straight and isinstance(module, nn.SiLU):
            found.add(path)

    def after(module: nn.Module, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) or (is_straight and isinstance(module, nn.BatchNorm2d)):
            straight.append((output, output._version))

    for path, module in layer.named_modules():
        module.register_forward_pre_hook(lambda module, args, path=path: before(path, module, args[:1]))
        module.register_forward_hook(lambda module, args, output: after(module, output))
    layer(input)
    return found


def _assert_is_int8(cell: Cell, layer: nn.Module, report: "Report") -> None:
    """Every convolution and projection became int8, and in float islands stands only what the sample declares.

    On onednn the kernel of a convolution computes an SiLU along: there it is int8 exactly where it follows one.
    """
    if cell.sample.is_island:
        assert [row.runs_in for row in report.rows] == ["float"], f"is_island=True, yet\n{report}"
        return
    assert any(row.runs_in == "int8" for row in report.rows), "nothing became int8"
    assert_weighted_is_int8(layer, report)
    # Without a class before are the stubs of the twin itself.
    in_float = {row.path: row.before for row in report.rows if row.runs_in == "float" and row.before}
    islands = {kind.__name__ for kind in cell.sample.islands}
    if cell.variant == "qnnpack":  # whose ReLU6 is wrong where no convolution or projection computes it along
        in_float = {path: before for path, before in in_float.items() if before != "ReLU6"}
    if cell.variant == "onednn" and "SiLU" in islands:
        along = _behind_convolutions(layer, cell.input())
        expected = {row.path for row in report.rows if row.before == "SiLU"} - along
        left = {path for path, before in in_float.items() if before == "SiLU"}
        assert left == expected, f"SiLU is in float at {sorted(left)}, and should be at {sorted(expected)}"
        islands -= {"SiLU"} - {in_float[path] for path in left}
    assert set(in_float.values()) == islands, f"in float are {sorted(in_float.values())}, declared {sorted(islands)}"


@row("ptq_eager", variants=BACKENDS, not_applicable=(NO_TWIN, NO_BACKEND))
def ptq_eager(cell: Cell) -> None:
    """Calibrated and converted, it runs in int8 and stays close to float, at other sizes and for none too."""
    from ... import quantized

    layer, model, x = _int8(cell)
    report = quantized.report(model)
    _assert_is_int8(cell, layer, report)
    assert not any(isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) for module in model.modules())
    # Fewer steps for a weight on x86 cost some of the signal; so does each island, which quantizes once more.
    islands = sum(row.runs_in == "float" for row in report.rows)
    assert_close(model(x), layer(x), 28 if cell.variant == "x86" else 35 - islands, "to float")
    wider = cell.other_input(33)
    assert_close(model(wider), layer(wider), 25, "to float at another size")
    assert model(x[:0]).shape == (0, *layer(x).shape[1:])


def _trains(cell: Cell) -> bool:
    from ... import quantized

    return bool(list(quantized.prepare_qat(cell.layer(), backend=cell.variant).parameters()))


NOTHING_TO_TRAIN = NA("is a float island without parameters", lambda cell: cell.sample.is_island and not _trains(cell))


@row("qat_eager", variants=BACKENDS, not_applicable=(NO_TWIN, NO_BACKEND, NOTHING_TO_TRAIN))
def qat_eager(cell: Cell) -> None:
    """Trained with fake quantization, saved in the middle and resumed, then int8: it computes what the training saw."""
    from ... import quantized

    layer, batches = cell.layer(), calibration(cell.sample)
    model, anew = (quantized.prepare_qat(start, backend=cell.variant) for start in (layer, cell.layer()))
    converted = trained_to_int8(model, anew, batches)
    _assert_is_int8(cell, layer, quantized.report(converted))
    x = torch.cat(batches)
    # Both round in the same steps, except for sums, products and sigmoids: int8 kernels for these round by themselves.
    assert_close(converted(x), model.eval()(x), 38, "between what was trained and int8")


# torch.jit is deprecated as a whole, and loading an int8 state dict uses storages that are; both still work.
@row(
    "int8_io",
    variants=BACKENDS,
    not_applicable=(NO_TWIN, NO_BACKEND),
    ignored_warnings=(
        (r"`torch\.jit", FutureWarning),
        (r"`torch\.jit", DeprecationWarning),
        ("TypedStorage is deprecated", UserWarning),
    ),
)
def int8_io(cell: Cell) -> None:
    """A script, a state dict and a deep copy of the int8 form give its bits, for a batch of none too."""
    from ... import quantized

    _, model, x = _int8(cell)
    expected = model(x)
    assert_copies_are_equal(model, quantized.quantize(cell.layer(), [3 * x[:4]], backend=cell.variant), x)

    script = io.BytesIO()
    torch.jit.save(torch.jit.script(model), script)
    script.seek(0)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = cell.variant  # a process that deploys does this once
    try:
        loaded = torch.jit.load(script)
        assert torch.equal(loaded(x), expected), "the script gives other values"
        assert loaded(x[:0]).shape == (0, *expected.shape[1:])
    finally:
        torch.backends.quantized.engine = engine
