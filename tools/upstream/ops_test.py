"""The tests of a layer for ``test/test_ops.py`` of torchvision, made from the samples of its spec."""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from torchvision_layers._source.formatting import format_code
from torchvision_layers.testing import LayerSpec, Sample

from .edits import add_class, add_imports
from .values import UnwritableError, call_source

__all__ = ["add_tests", "tests_of"]

_IMPORTS = [
    "import pytest\n",
    "import torch\n",
    "import torch.fx\n",
    "from torch import nn, Tensor\n",
    "from torchvision import ops\n",
]


def _fill(layer: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The layer in eval mode and an input, both in float64 and with fixed values."""
    with torch.no_grad():
        layer.eval()(torch.ones(shape))  # a lazy layer infers its channels
        layer.double()
        for i, (name, value) in enumerate(layer.state_dict().items()):
            if value.is_floating_point():
                numbers = torch.arange(value.numel()).add(i + 1).double().cos().reshape(value.shape)
                value.copy_(numbers.square() + 0.5 if name.endswith("running_var") else numbers)
    x = torch.arange(torch.Size(shape).numel()).double().sin().reshape(shape)
    return layer, x


def _fingerprint(output: Tensor) -> Tensor:
    """Two numbers that identify an output: its root mean square, and a mean weighted by position."""
    values = output.double().flatten()
    return torch.stack((values.square().mean().sqrt(), (values * torch.arange(len(values)).sqrt().cos()).mean()))


_SAMPLE_TESTS = """
@pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
def test_values(self, make, shape, expected_shape, expected):
    layer, x = self._fill(make(), shape)
    output = layer(x)
    assert output.shape == expected_shape
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(self._fingerprint(output), expected, rtol=1e-6, atol=1e-6 * float(expected[0]))

@pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
def test_jit(self, make, shape, expected_shape, expected):
    layer, x = self._fill(make(), shape)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))

@pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
def test_torch_fx(self, make, shape, expected_shape, expected):
    layer, x = self._fill(make(), shape)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))

@pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
def test_export(self, make, shape, expected_shape, expected):
    layer, x = self._fill(make(), shape)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))

@pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
def test_state_dict(self, make, shape, expected_shape, expected):
    layer, x = self._fill(make(), shape)
    other = make().double().eval()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x))

@pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
def test_backward(self, make, shape, expected_shape, expected):
    layer, x = self._fill(make(), shape)
    layer.train()(x.requires_grad_()).square().sum().backward()
    assert x.grad is not None
    for parameter in layer.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
"""
_ARGUMENT_TESTS = """
@pytest.mark.parametrize("make, error, message", BAD_ARGUMENTS)
def test_invalid_arguments(self, make, error, message):
    with pytest.raises(error, match=message):
        make()
"""
_INPUT_TESTS = """
@pytest.mark.parametrize("shape, error, message", BAD_INPUTS)
def test_invalid_inputs(self, shape, error, message):
    layer = {call}
    with pytest.raises(error, match=message):
        layer(torch.rand(shape))
"""


def tests_of(spec: LayerSpec, title: str) -> str:
    """A test class for the layer of a spec.

    The expected values come from the spec's independent reference, once the layer agrees with it. Samples and bad
    arguments that have no short form in Python are left out.

    Raises ``ValueError`` if no sample has a short form, or if the layer disagrees with its reference.
    """
    samples, arguments, inputs = list(_samples(spec)), _bad_arguments(spec), list(_bad_inputs(spec))
    if not samples:
        raise ValueError(f"a sample of {spec.name} must have arguments with a short form in Python, none has")
    parts = [_table("SAMPLES", samples), _table("BAD_ARGUMENTS", arguments), _table("BAD_INPUTS", inputs)]
    parts += [f"\n@staticmethod\n{inspect.getsource(function)}" for function in (_fill, _fingerprint)]
    parts += [_SAMPLE_TESTS, _ARGUMENT_TESTS if arguments else ""]
    parts += [_INPUT_TESTS.format(call=call_source(f"ops.{spec.name}", spec.samples[0].kwargs)) if inputs else ""]
    return format_code(f"class {title}:\n{textwrap.indent(''.join(parts), '    ')}")


def add_tests(text: str, code: str) -> str:
    """Adds a test class and its imports to the text of ``test/test_ops.py``."""
    partial = ["from functools import partial\n"] if "partial(" in code else []
    return add_imports(add_class(text, code), [*_IMPORTS, *partial])


def _table(name: str, cases: list[str]) -> str:
    return f"{name} = [{', '.join(cases)},]\n" if cases else ""


def _samples(spec: LayerSpec) -> Iterator[str]:
    for sample in spec.samples:
        with suppress(UnwritableError):
            call = call_source(f"ops.{spec.name}", sample.kwargs)
            shape, values = _expected(spec, sample)
            numbers = ", ".join(f"{number:.7g}" for number in _fingerprint(values).tolist())
            yield f'pytest.param(lambda: {call}, {sample.shape}, {shape}, [{numbers}], id="{sample.id}")'


def _expected(spec: LayerSpec, sample: Sample) -> tuple[tuple[int, ...], Tensor]:
    """The output of a sample's reference, or that of the layer if the sample has no reference."""
    layer, x = _fill(spec.cls(**sample.kwargs), sample.shape)
    with torch.no_grad():
        output = layer(x)
    if sample.reference is None:
        return tuple(output.shape), output
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}
    reference = torch.from_numpy(np.asarray(sample.reference(x.numpy(), weights, False)))
    if output.shape != reference.shape or not torch.allclose(output, reference, rtol=1e-6, atol=1e-8):
        raise ValueError(f"{spec.name} must agree with its reference on sample {sample.id!r}")
    return tuple(output.shape), reference


def _bad_arguments(spec: LayerSpec) -> list[str]:
    """Arguments that the constructor rejects, one case for each argument and type of error."""
    cases: dict[object, str] = {}
    for bad in spec.bad_arguments:
        with suppress(UnwritableError):
            call = call_source(f"ops.{spec.name}", {**spec.samples[0].kwargs, **bad.kwargs})
            case = f"pytest.param(lambda: {call}, {bad.error.__name__}, {_pattern(bad.message)})"
            cases.setdefault((tuple(bad.kwargs), bad.error), case)
    return list(cases.values())


def _bad_inputs(spec: LayerSpec) -> Iterator[str]:
    for bad in spec.bad_inputs:
        if isinstance(bad.input, tuple) and not bad.kwargs and not bad.training and bad.error is ValueError:
            yield f"pytest.param({bad.input}, ValueError, {_pattern(bad.message)})"


def _pattern(message: str) -> str:
    return f"r{message!r}".replace("\\\\", "\\") if "\\" in message else repr(message)
