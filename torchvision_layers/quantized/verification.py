"""The last comparison: an int8 or prepared model with the float model, as far as rounding explains the difference."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .._utils.outputs import largest, outputs_of
from .checks import check_same_as_model
from .finite import describe_origin
from .rounding import round_weights_, rounded_outputs
from .wrapper import QuantizableWrapper

__all__ = ["WidestBatch", "check_converted", "check_int8", "check_prepared"]

#: How often the power that the estimate gives an error may have. It was up to 3 times that in small models and in those
#: of the zoo, and 50 to 5,000 times that with planted faults.
_LIMIT = 10.0
#: Estimates before an error is raised.
_DRAWS = 8
#: Images whose values set the ranges of these estimates.
_IMAGES = 32
#: The share of indices and masks that rounding may always change, and the size of an error that is always accepted,
#: relative to the largest value.
_SHARE, _FLOOR = 0.01, 1e-3


class WidestBatch:
    """Remembers the batch with the largest value: ranges that fit it are hardly wider than those that it has itself."""

    def __init__(self) -> None:
        self.inputs = Inputs()
        #: The first batches, for models whose largest values come from other inputs.
        self.first: list[Inputs] = []
        self._largest = -1.0

    def watch(self, batches: Iterator[Inputs]) -> Iterator[Inputs]:
        """The same batches."""
        images = 0
        for batch in batches:
            floats = [tensor for tensor in batch.tensors() if tensor.is_floating_point()]
            largest = max((float(tensor.abs().max()) for tensor in floats), default=0.0)
            images += _images(batch)
            if largest > self._largest or images <= _IMAGES:
                kept = batch.map(lambda tensor: tensor.detach().clone())  # a forward may write
                if images <= _IMAGES:
                    self.first.append(kept)
                if largest > self._largest:
                    self._largest, self.inputs = largest, kept
            yield batch


def _images(batch: Inputs) -> int:
    return next((len(tensor) for tensor in batch.tensors() if tensor.dim()), 1)


@torch.no_grad()
def check_int8(int8: QuantizableWrapper, model: nn.Module, batch: Inputs, observed: Sequence[Inputs] = ()) -> None:
    """Raises ``RuntimeError`` unless rounding explains how far an int8 model is from the float model.

    A few images and one estimate are enough if the error is small. Otherwise the whole batch and more estimates decide,
    with ranges that hold the values of ``observed`` as well.

    Args:
        int8: the converted model, or a copy of it.
        model: the model that it came from, in float or with fake quantization; it is not changed.
        batch: inputs like those that the ranges were observed on.
        observed: other inputs that the ranges were observed on.
    """
    images = int8.first_images(batch, min(max(_images(batch) // 8, 1), 4))
    with suppress(Exception):  # of any type, if a forward takes no other batch size
        if _problem(int8, model, images, draws=1) is None:
            return
    problem = _problem(int8, model, batch, _DRAWS, observed)
    if problem is not None:
        raise RuntimeError(
            f"the int8 model computes something else than the model: {problem} on a calibration batch. Please report "
            "the model; check=False returns the int8 model without this comparison"
        )


def check_converted(int8: QuantizableWrapper, prepared: QuantizableWrapper) -> None:
    """Compares an int8 model with the trained model that it came from, if that has run on a batch."""
    if prepared.sample is None:
        return
    reference = _switch_(copy_module(prepared).cpu(), "observer_enabled")
    check_int8(int8, reference, prepared.sample.map(Tensor.cpu))


@torch.no_grad()
def check_prepared(prepared: QuantizableWrapper, model: nn.Module, example: Inputs) -> None:
    """Raises ``RuntimeError`` unless a model prepared for training computes what ``model`` does in eval mode."""
    reference = copy_module(model).eval()
    silent = _switch_(copy_module(prepared), "observer_enabled", "fake_quant_enabled").eval()
    message = (
        "the prepared model computes something else than the model in eval mode, even without fake quantization. "
        "Please report the model; check=False returns the prepared model without this comparison"
    )
    check_same_as_model(example.map(Tensor.clone).run(silent), reference, example, message)


def _switch_(model: nn.Module, *names: str) -> nn.Module:
    """Turns off these switches of all observers and fake quantization, in place."""
    for path, buffer in model.named_buffers():
        if path.rpartition(".")[2] in names:
            buffer.zero_()
    return model


def _problem(
    int8: QuantizableWrapper, model: nn.Module, inputs: Inputs, draws: int, observed: Sequence[Inputs] = ()
) -> str | None:
    """A difference of ``int8`` that rounding does not explain; ``None`` if there is none."""
    reference = copy_module(model).eval()
    expected = outputs_of(reference, inputs)
    if any(bool(tensor.isnan().any()) for tensor in expected):
        raise ValueError(
            f"model must give finite outputs, it gives NaN for one of the batches{describe_origin(model, inputs)}"
        )
    outputs = outputs_of(int8, inputs.map(Tensor.cpu))
    if len(outputs) != len(expected):
        return f"it returns {len(outputs)} tensors in place of {len(expected)}"
    _switch_(reference, "fake_quant_enabled")
    round_weights_(reference)
    generators = [torch.Generator().manual_seed(i) if i else None for i in range(draws)]
    is_symmetric = int8.backend == "tensorrt"
    widths = dict[int, float]()
    for other in observed:
        rounded_outputs(reference, other, None, is_symmetric, widths)
    estimates = [_cpu(rounded_outputs(reference, inputs, generator, is_symmetric, widths)) for generator in generators]
    for i, (output, original) in enumerate(zip(outputs, _cpu(expected), strict=True)):
        problem = _difference(output, original, [tensors[i] for tensors in estimates])
        if problem is not None:
            return f"output {i} {problem}" if len(outputs) > 1 else f"its output {problem}"
    return None


def _difference(output: Tensor, expected: Tensor, estimates: Sequence[Tensor]) -> str | None:
    if any(estimate.shape != expected.shape for estimate in estimates):
        return None  # its size depends on values
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return f"is {_describe(output)} in place of {_describe(expected)}"
    if not expected.is_floating_point() and not expected.is_complex():
        share, explained = _share(output, expected), max(_share(estimate, expected) for estimate in estimates)
        if share <= max(_SHARE, 4 * explained):
            return None
        return f"differs in {share:.0%} of its values, where rounding explains {explained:.0%}"
    is_finite = torch.isfinite(expected)
    if not is_finite.all():  # a mask, for example
        output, expected = output[is_finite], expected[is_finite]
        estimates = [estimate[is_finite] for estimate in estimates]
    signal, floor = _power(expected), (_FLOOR * largest(expected)) ** 2 * expected.numel()
    error, powers = _power(output - expected), [_power(estimate - expected) for estimate in estimates]
    # Rounding may make a forward divide by zero.
    explained = max(filter(math.isfinite, powers), default=signal / _LIMIT)
    if error <= max(_LIMIT * explained, floor):
        return None
    return (
        f"has {_decibels(signal, error)} of signal over error, where rounding explains {_decibels(signal, explained)}"
    )


def _cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


def _share(output: Tensor, expected: Tensor) -> float:
    return float((output != expected).double().mean()) if expected.numel() else 0.0


def _power(tensor: Tensor) -> float:
    return float(tensor.abs().double().square().sum())


def _decibels(signal: float, error: float) -> str:
    if not math.isfinite(error):
        return "NaN"
    return f"{10 * math.log10(max(signal, 1e-300) / max(error, 1e-300)):.0f} dB"


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {list(tensor.shape)}"
