"""Our int8 modules: inputs, errors, states, copies, scripts, and linear layers."""

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager import post_ops
from torchvision_layers.quantized.eager.int8_arithmetic import Int8Addition
from torchvision_layers.quantized.eager.int8_modules import (
    Int8ConvActivation2d,
    Int8ConvAddition2d,
    Int8Linear,
    use_backend,
)
from torchvision_layers.testing._checks._quantization import decibels

# torch saves and copies int8 tensors through a storage class that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


def small_model() -> nn.Sequential:
    """Every kind of int8 module: sums with and without ReLU, Hardswish, SiLU, an addition, a product, linear layers."""
    return nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.Hardswish),
        tnn.BasicBlock(8, 8),
        tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation),
        tnn.MBConv(8, 8, expand_ratio=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tnn.LinearDropoutAct(8, 6, dropout=0.1),
        nn.Linear(6, 4),
    ).eval()


@pytest.fixture(scope="module")
def calibrated() -> Iterator[quantized.QuantizableModel]:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post_ops, "_WORTHWHILE", 0)
        converted = quantized.quantize(small_model(), [torch.randn(8, 3, 16, 14)], backend="onednn")
        classes = {type(module) for module in converted.modules()}
        assert {Int8Addition, Int8ConvActivation2d, Int8ConvAddition2d, Int8Linear} < classes
        yield converted


@pytest.fixture
def model(calibrated: quantized.QuantizableModel) -> quantized.QuantizableModel:
    """A copy, for tests that change the model."""
    return copy.deepcopy(calibrated)


def int8(x: Tensor, scale: float = 0.03, zero_point: int = 100) -> Tensor:
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)


def weights(*shape: int) -> Tensor:
    weight = torch.randn(shape)
    scales = weight.abs().flatten(1).amax(1) / 127
    return torch.quantize_per_channel(weight, scales, torch.zeros(shape[0], dtype=torch.long), 0, torch.qint8)


def conv_addition(stride: int = 1, zero_point: int = 0) -> Int8ConvAddition2d:
    with use_backend("onednn"):
        args = weights(6, 4, 3, 3), torch.randn(6), [stride] * 2, [1, 1], [1, 1], 1
        return Int8ConvAddition2d(*args, 0.05, zero_point).eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("zero_point", [0, 90])
def test_skip_input_is_unchanged(memory_format: torch.memory_format, zero_point: int) -> None:
    conv, x = conv_addition(zero_point=zero_point), int8(torch.randn(2, 4, 7, 5))
    skip = int8(torch.randn(2, 6, 7, 5), 0.02, 128).contiguous(memory_format=memory_format)
    before, strides = skip.int_repr().clone(), skip.stride()
    with use_backend("onednn"):
        first, second = conv(x, skip), conv(x, skip)
    assert torch.equal(skip.int_repr(), before)
    assert skip.stride() == strides
    assert (skip.q_scale(), skip.q_zero_point()) == (pytest.approx(0.02), 128)
    assert torch.equal(first.int_repr(), second.int_repr())
    assert not torch.equal(first.int_repr(), before)


def test_memory_formats_give_equal_values() -> None:
    conv, x, skip = conv_addition(), int8(torch.randn(2, 4, 7, 5)), int8(torch.randn(2, 6, 7, 5))
    with use_backend("onednn"):
        outputs = [
            conv(a, b)
            for a in (x, x.contiguous(memory_format=torch.channels_last))
            for b in (
                skip,
                skip.contiguous(memory_format=torch.channels_last),
                int8(skip.dequantize().transpose(2, 3)).transpose(2, 3),
            )
        ]
    assert all(torch.equal(output.int_repr(), outputs[0].int_repr()) for output in outputs[1:])


@pytest.mark.parametrize("shape", [(2, 6, 7, 4), (2, 6, 6, 5), (1, 6, 7, 5), (2, 1, 7, 5), (2, 6, 1, 1), (6, 7, 5)])
def test_skip_of_another_shape_raises(shape: tuple[int, ...]) -> None:
    with (
        use_backend("onednn"),
        pytest.raises(ValueError, match=r"other must have the shape \[2, 6, 7, 5\] of the conv"),
    ):
        conv_addition()(int8(torch.randn(2, 4, 7, 5)), int8(torch.randn(shape)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sizes", [(5, 6), (6, 5), (1, 1)])
def test_output_has_shape_of_convolution(stride: int, sizes: tuple[int, int]) -> None:
    conv, x = conv_addition(stride), torch.randn(2, 4, *sizes)
    expected = nn.Conv2d(4, 6, 3, stride, 1)(x).shape
    with use_backend("onednn"):
        assert conv(int8(x), int8(torch.randn(expected))).shape == expected


def test_block_with_mismatched_shapes_raises(model: quantized.QuantizableModel) -> None:
    block = model.model[1]
    block.conv1.padding, block.conv1._packed_params = (0, 0), None
    x = int8(torch.randn(2, 8, 6, 6))
    with use_backend("onednn"), pytest.raises(ValueError, match="other must have the shape"):
        block.skip_add(x[..., :4], x)


def test_outputs_are_independent_of_the_batch(model: quantized.QuantizableModel) -> None:
    """An image gives equal outputs alone and in a batch, also at sizes that differ from the calibration's."""
    for shape in ((5, 3, 16, 14), (3, 3, 33, 21), (2, 3, 4, 4)):
        x = torch.randn(shape)
        whole = model(x)
        assert whole.shape == (shape[0], 4)
        assert torch.equal(torch.cat([model(image) for image in x.split(1)]), whole)
    assert model(torch.randn(0, 3, 16, 14)).shape == (0, 4)


def test_copies_are_bit_equal(model: quantized.QuantizableModel) -> None:
    x = torch.randn(2, 3, 18, 14)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(model(x), expected)


def test_own_int8_modules_are_pickled(model: quantized.QuantizableModel) -> None:
    """Torch's own int8 convolutions are broken after unpickling."""
    with use_backend("onednn"):
        block = pickle.loads(pickle.dumps(model.model[1].skip_add))
        x, skip = int8(torch.randn(2, 8, 6, 6)), int8(torch.randn(2, 8, 6, 6))
        assert torch.equal(block(x, skip).int_repr(), model.model[1].skip_add(x, skip).int_repr())
        head = pickle.loads(pickle.dumps(model.model[6:]))
        x = int8(torch.randn(5, 8))
        assert torch.equal(head(x).int_repr(), model.model[6:](x).int_repr())


def test_state_dict_is_saved_and_loaded(model: quantized.QuantizableModel) -> None:
    x, file = torch.randn(2, 3, 18, 14), io.BytesIO()
    torch.save(model.state_dict(), file)
    other = quantized.quantize(small_model(), [3 * torch.randn(4, 3, 16, 14)], backend="onednn")
    assert not torch.equal(other(x), model(x))
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), model(x))


def test_mismatched_state_dict_raises(model: quantized.QuantizableModel) -> None:
    state = model.state_dict()
    incomplete = {key: value for key, value in state.items() if key != "1.skip_add.scale"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: '1\.skip_add\.scale'"):
        model.load_state_dict(incomplete)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: '1\.skip_add\.more'"):
        model.load_state_dict({**state, "1.skip_add.more": torch.ones(1)})
    model.load_state_dict(incomplete, strict=False)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_script_is_bit_equal(model: quantized.QuantizableModel) -> None:
    file, inputs = io.BytesIO(), [torch.randn(shape) for shape in ((2, 3, 16, 14), (1, 3, 21, 30), (0, 3, 9, 9))]
    expected = [model(x) for x in inputs]
    script = torch.jit.script(model)
    torch.jit.save(script, file)
    file.seek(0)
    with use_backend("onednn"):
        loaded = torch.jit.load(file)
        for x, y in zip(inputs, expected, strict=True):
            assert torch.equal(script(x), y)
            assert torch.equal(loaded(x), y)


@pytest.mark.parametrize("has_relu", [False, True], ids=["", "ReLU"])
@pytest.mark.parametrize("zero_point", [0, 77])
@pytest.mark.parametrize("shape", [(5, 16), (3, 5, 16), (2, 3, 4, 16), (1, 16)], ids=str)
def test_linear_matches_torch(shape: tuple[int, ...], zero_point: int, has_relu: bool) -> None:
    """The int8 weights are equal; the kernels may differ by one step, since they add in different orders."""
    weight, bias, x = weights(8, 16), torch.randn(8), int8(torch.randn(shape).abs(), 0.02, zero_point)
    output = 0.05, 0 if has_relu else 90
    with use_backend("onednn"):
        own = Int8Linear(weight, bias, [1, 1], [0, 0], [1, 1], 1, *output)(x)
        kernel = torch.ops.quantized.linear_relu if has_relu else torch.ops.quantized.linear
        reference = kernel(x, torch.ops.quantized.linear_prepack(weight, bias), *output)
    assert own.shape == reference.shape
    assert (own.q_scale(), own.q_zero_point()) == (reference.q_scale(), reference.q_zero_point())
    difference = (own.int_repr().int() - reference.int_repr().int()).abs()
    assert int(difference.max()) <= 1
    assert float(difference.float().mean()) <= 0.01
    exact = nn.functional.linear(x.dequantize(), weight.dequantize(), bias)
    expected = torch.quantize_per_tensor(exact, *output, torch.quint8).int_repr().int()
    assert int((own.int_repr().int() - expected).abs().max()) <= 1
    assert len(own.int_repr().unique()) > 3


@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_every_linear_layer_is_int8_on_onednn(is_qat: bool) -> None:
    layers = (nn.Linear(8, 6), tnn.LinearDropoutAct(6, 6), tnn.LinearDropoutAct(6, 6, activation_layer=nn.ReLU6))
    model, x = nn.Sequential(*layers, tnn.MLP(6, [5, 4])).eval(), torch.randn(64, 8)
    if is_qat:
        prepared = quantized.prepare_qat(model, backend="onednn")
        prepared(x)
        converted = quantized.convert(prepared)
    else:
        converted = quantized.quantize(model, [x], backend="onednn")
    names = [row.after for row in quantized.report(converted).rows if row.before == "Linear"]
    assert names == ["Int8Linear"] * 5
    assert not {"Linear", "LinearReLU"} & {type(module).__name__ for module in converted.modules()}
    assert converted(x[None]).shape == (1, 64, 4)
    assert torch.equal(converted(x[None])[0], converted(x))


def test_leaky_relu_in_place_prints_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU(inplace=True)).eval()
    x = torch.randn(2, 3, 6, 6)
    quantized.quantize(model, [x])(x)
    assert "inplace" not in capfd.readouterr().err


@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_deterministic_algorithms(backend: str, warn_only: bool) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval(),
        torch.randn(4, 3, 8, 8),
    )
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        int8 = quantized.quantize(model, [x], backend=backend)
        assert decibels(model(x), int8(x)) > 28
        assert torch.equal(int8(x), int8(x))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)
