"""A test of a layer for ``test/test_ops.py`` of torchvision, made from the samples of its specification."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..testing import BadInput, LayerSpec, Sample
from ._edits import WIDTH, Import, with_import
from ._samples import UnwritableError, as_call, as_source

__all__ = ["TestCode", "code_for", "with_test"]

_IMPORTS = (Import("functools", "partial"), Import("pytest"), Import("torch"), Import("torch.fx"))
_FROM_TORCH = (Import("torch", "nn"), Import("torch", "Tensor"), Import("torchvision", "ops"))
#: Rows of the samples end here, in torchvision.
_INDENT = " " * 8

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class TestCode:
    """The text of a test class, and how many cases each of its subjects has."""

    __test__ = False  # it is no test, whatever its name

    text: str
    samples: int
    refusals: int


def _filled(layer: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The layer in eval mode and an input, both of fixed numbers in float64."""
    with torch.no_grad():
        layer.eval()(torch.ones(shape))  # a lazy layer reads its channels
        layer.double()
        for i, (name, value) in enumerate(layer.state_dict().items()):
            if value.is_floating_point():
                numbers = torch.arange(value.numel()).add(i + 1).double().cos().reshape(value.shape)
                value.copy_(numbers.square() + 0.5 if name.endswith("running_var") else numbers)
    x = torch.arange(torch.Size(shape).numel()).double().sin().reshape(shape)
    return layer, x


def _numbers(output: Tensor) -> Tensor:
    """Two numbers that tell outputs apart: their size, and one that depends on the place of each value."""
    values = output.double().flatten()
    return torch.stack((values.square().mean().sqrt(), (values * torch.arange(len(values)).sqrt().cos()).mean()))


_HEAD = """\
class {title}:
{samples}
{bad_arguments}{bad_inputs}
{helpers}
    @pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
    def test_values(self, make, shape, expected_shape, expected):
        layer, x = self._filled(make(), shape)
        output = layer(x)
        assert output.shape == expected_shape
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(self._numbers(output), expected, rtol=1e-6, atol=1e-6 * float(expected[0]))

    @pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
    def test_jit(self, make, shape, expected_shape, expected):
        layer, x = self._filled(make(), shape)
        torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))

    @pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
    def test_torch_fx(self, make, shape, expected_shape, expected):
        layer, x = self._filled(make(), shape)
        torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))

    @pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
    def test_export(self, make, shape, expected_shape, expected):
        layer, x = self._filled(make(), shape)
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))

    @pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
    def test_state_dict(self, make, shape, expected_shape, expected):
        layer, x = self._filled(make(), shape)
        other = make().double().eval()
        other.load_state_dict(layer.state_dict())
        torch.testing.assert_close(other(x), layer(x))

    @pytest.mark.parametrize("make, shape, expected_shape, expected", SAMPLES)
    def test_backward(self, make, shape, expected_shape, expected):
        layer, x = self._filled(make(), shape)
        layer.train()(x.requires_grad_()).square().sum().backward()
        assert x.grad is not None
        for parameter in layer.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
"""
_ARGUMENTS = """
    @pytest.mark.parametrize("make, error, message", BAD_ARGUMENTS)
    def test_invalid_arguments(self, make, error, message):
        with pytest.raises(error, match=message):
            make()
"""
_INPUTS = """
    @pytest.mark.parametrize("shape, error, message", BAD_INPUTS)
    def test_invalid_inputs(self, shape, error, message):
{layer}
        with pytest.raises(error, match=message):
            layer(torch.rand(shape))
"""


def code_for(spec: LayerSpec, title: str) -> TestCode:
    """A test class for the layer of a specification.

    Shapes are those of the layer here. The numbers come from the independent reference of the specification, and the
    layer is compared with them before they are written down. Samples and bad arguments that have no short form in
    Python are left out.

    Errors: ``ValueError`` where no sample has one, or the layer disagrees with its reference.
    """
    samples = _written(spec.samples, lambda sample: _sample(spec, sample))
    if not samples:
        raise ValueError(f"a sample of {spec.name} must be of arguments that can be written down, there is none")
    arguments = _refused_arguments(spec)
    inputs = _written(spec.bad_inputs, _refused_input)
    text = _HEAD.format(
        title=title,
        samples=_rows("SAMPLES", samples),
        bad_arguments=_rows("BAD_ARGUMENTS", arguments),
        bad_inputs=_rows("BAD_INPUTS", inputs),
        helpers="\n".join(_static(function) for function in (_filled, _numbers)),
    )
    if arguments:
        text += _ARGUMENTS
    if inputs:
        call = as_call(f"ops.{spec.name}", spec.samples[0].kwargs)
        text += _INPUTS.format(layer=_laid_out(f"layer = {call}", _INDENT))
    return TestCode(text, len(samples), len(arguments) + len(inputs))


def with_test(text: str, code: TestCode) -> str:
    """The file of tests with one more class, before what runs it as a script."""
    place = text.find("\nif __name__ ==")
    body, end = (text[:place].rstrip("\n"), text[place:]) if place >= 0 else (text.rstrip("\n"), "")
    text = f"{body}\n\n\n{code.text}" + (f"\n{end}" if end else "")
    for part in (*_IMPORTS, *_FROM_TORCH):
        if part.name != "partial" or "partial(" in code.text:
            text = with_import(text, part)
    return text


def _written(items: Iterable[_Item], write: Callable[[_Item], str]) -> list[str]:
    found = []
    for item in items:
        try:
            found.append(write(item))
        except UnwritableError:
            continue
    return list(dict.fromkeys(found))


def _sample(spec: LayerSpec, sample: Sample) -> str:
    call = as_call(f"ops.{spec.name}", sample.kwargs)
    layer, x = _filled(spec.cls(**sample.kwargs), sample.shape)
    with torch.no_grad():
        output = layer(x)
    numbers = _numbers(output)
    if sample.reference is not None:
        weights = {name: value.numpy() for name, value in layer.state_dict().items()}
        reference = torch.from_numpy(np.asarray(sample.reference(x.numpy(), weights, False)))
        numbers = _numbers(reference)
        if output.shape != reference.shape or not torch.allclose(output, reference, rtol=1e-6, atol=1e-8):
            raise ValueError(f"{spec.name} must agree with its reference on sample {sample.id!r}")
    expected = ", ".join(f"{number:.7g}" for number in numbers.tolist())
    rows = [f"lambda: {call}", as_source(tuple(sample.shape)), as_source(tuple(output.shape)), f"[{expected}]"]
    return _param([*rows, f'id="{sample.id}"'])


def _refused_arguments(spec: LayerSpec) -> list[str]:
    """What the constructor must refuse: of each argument and kind of error one case."""
    first: dict[object, str] = {}
    for bad in spec.bad_arguments:
        key = (tuple(bad.kwargs), bad.error)
        if key not in first:
            try:
                call = as_call(f"ops.{spec.name}", {**spec.samples[0].kwargs, **bad.kwargs})
            except UnwritableError:
                continue
            first[key] = _param([f"lambda: {call}", bad.error.__name__, _pattern(bad.message)])
    return list(first.values())


def _refused_input(bad: BadInput) -> str:
    if not isinstance(bad.input, tuple) or bad.kwargs or bad.training or bad.error is not ValueError:
        raise UnwritableError("not an input of another shape")
    return _param([as_source(bad.input), "ValueError", _pattern(bad.message)])


def _pattern(message: str) -> str:
    quote = "'" if '"' in message else '"'
    return f"{'r' if chr(92) in message else ''}{quote}{message}{quote}"


def _param(parts: list[str]) -> str:
    line = f"{_INDENT}pytest.param({', '.join(parts)}),\n"
    if len(line) <= WIDTH + 1:  # with its end
        return line
    inner = "".join(f"{_laid_out(part, _INDENT + '    ')},\n" for part in parts)
    return f"{_INDENT}pytest.param(\n{inner}{_INDENT}),\n"


def _laid_out(part: str, indent: str) -> str:
    """An expression or assignment on a line of its own; the arguments of a call on others where that is too long."""
    if len(indent + part) < WIDTH:
        return f"{indent}{part}"
    call = next((node for node in ast.walk(ast.parse(part)) if isinstance(node, ast.Call)), None)  # the outermost
    if call is None:
        return f"{indent}{part}"
    arguments = [ast.get_source_segment(part, keyword) or "" for keyword in call.keywords]
    line = f"{indent}    {', '.join(arguments)}"
    lines = line if len(line) <= WIDTH else ",\n".join(f"{indent}    {one}" for one in arguments) + ","
    return f"{indent}{part[: part.index('(') + 1]}\n{lines}\n{indent})"


def _rows(name: str, rows: list[str]) -> str:
    return f"    {name} = [\n{''.join(rows)}    ]\n" if rows else ""


def _static(function: Callable[..., object]) -> str:
    """The source of a function as a static method."""
    lines = inspect.getsource(function).splitlines(keepends=True)
    return textwrap.indent("@staticmethod\n" + "".join(lines), "    ")
