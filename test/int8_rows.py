"""Rows of the matrix on int8: every layer with a twin, quantized after and in training, on every backend."""

import copy
import io

import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing import NA, Cell, Row, Sample, row
from torchvision_layers.testing._rows._applies import NO_TWIN
from torchvision_layers.testing._rows._quantizing import calibration, decibels, train

__all__ = ["BACKENDS", "INT8_ROWS"]

BACKENDS = ("x86", "onednn", "qnnpack")


_MADE: dict[tuple[str, str, str], tuple[nn.Module, quantized.QuantizableModel, Tensor]] = {}


def int8(cell: Cell) -> tuple[nn.Module, quantized.QuantizableModel, Tensor]:
    """A layer, its int8 form and the inputs that calibrated it: made once, for calibrating takes the time."""
    key = (cell.spec.name, cell.sample.id, cell.variant)
    if key not in _MADE:
        torch.manual_seed(0)  # whichever row comes first
        layer, batches = cell.layer(), calibration(cell.sample)
        _MADE[key] = layer, quantized.quantize(layer, batches, backend=cell.variant), torch.cat(batches)
    return _MADE[key]


def assert_is_int8(model: nn.Module, sample: Sample) -> None:
    """Every convolution and projection became int8, and in float islands stands only what the spec allows."""
    report = quantized.report(model)
    if sample.is_island:
        assert [row.runs_in for row in report.rows] == ["float"]
        return
    heavy = [row for row in report.rows if row.before in ("Conv1d", "Conv2d", "Conv3d", "Linear")]
    assert heavy, "nothing became int8"
    assert all(row.runs_in == "int8" for row in heavy), f"left in float: {report}"
    in_float = {row.before for row in report.rows if row.runs_in == "float"}
    islands = {kind.__name__ for kind in sample.islands}
    assert in_float in (islands, islands - {"SiLU"}), in_float
    assert not any(isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) for module in model.modules())


@row("ptq_eager", variants=BACKENDS, not_applicable=(NO_TWIN,))
def ptq_eager(cell: Cell) -> None:
    """Calibrated and converted, it runs in int8 and stays close to float, at other sizes and for none too."""
    layer, model, x = int8(cell)
    assert_is_int8(model, cell.sample)
    # Seven bits of weight on x86 cost some of the signal; so does each island, which quantizes once more.
    islands = sum(row.runs_in == "float" for row in quantized.report(model).rows)
    bound = 28 if cell.variant == "x86" else 35 - 2 * islands
    noise = decibels(layer(x), model(x))
    assert noise >= bound, f"{noise:.1f} dB, at least {bound} are asked for"
    wider = cell.other_input(33)
    noise = decibels(layer(wider), model(wider))
    assert noise >= 25, f"{noise:.1f} dB at another size"
    assert model(x[:0]).shape == (0, *layer(x).shape[1:])


def _trains(cell: Cell) -> bool:
    return bool(list(quantized.prepare_qat(cell.layer(), backend=cell.variant or "x86").parameters()))


NOTHING_TO_TRAIN = NA(
    "is a float island without parameters",
    lambda cell: cell.spec.twin is not None and cell.sample.is_island and not _trains(cell),
)


@row("qat_eager", variants=BACKENDS, not_applicable=(NO_TWIN, NOTHING_TO_TRAIN))
def qat_eager(cell: Cell) -> None:
    """Trained for some steps with fake quantization, then converted: int8 computes what the training saw."""
    layer, batches = cell.layer(), calibration(cell.sample)
    model = quantized.prepare_qat(layer, backend=cell.variant)
    train(model, batches)
    quantized.freeze(model)
    converted = quantized.convert(model)
    assert_is_int8(converted, cell.sample)
    x = torch.cat(batches)
    noise = decibels(model.eval()(x), converted(x))
    assert noise >= 25, f"{noise:.1f} dB between what was trained and int8"


# torch.jit is deprecated as a whole, and loading an int8 state dict uses storages that are; both still work.
@row(
    "int8_io",
    variants=BACKENDS,
    not_applicable=(NO_TWIN,),
    ignored_warnings=(
        (r"`torch\.jit", FutureWarning),
        (r"`torch\.jit", DeprecationWarning),
        ("TypedStorage is deprecated", UserWarning),
    ),
)
def int8_io(cell: Cell) -> None:
    """A script, a state dict and a deep copy of the int8 form give its bits, for a batch of none too."""
    _, model, x = int8(cell)
    expected = model(x)
    state, script = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), state)
    assert torch.equal(copy.deepcopy(model)(x), expected), "the deep copy gives other values"
    state.seek(0)
    other = quantized.quantize(cell.layer(), [3 * x[:4]], backend=cell.variant)
    assert not torch.equal(other(x), expected), "nothing to load"
    other.load_state_dict(torch.load(state, weights_only=True), strict=True)
    assert torch.equal(other(x), expected), "the state dict gives other values"

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


INT8_ROWS: tuple[Row, ...] = (ptq_eager, qat_eager, int8_io)
