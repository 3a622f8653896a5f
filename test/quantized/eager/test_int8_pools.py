"""Pools and interpolation of int8 tensors, in every order of memory, on every backend."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import quantized
from torchvision_layers.quantized.eager.int8_modules import use_backend
from torchvision_layers.quantized.eager.int8_pools import Subsampling, use_int8_pools

BACKENDS = ("x86", "onednn", "qnnpack")
X = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(0))

#: How tokens or a row of pixels come from an image. Dimensions of size one may then have any stride.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "image": lambda x: x,
    "row": lambda x: x.flatten(2).unsqueeze(2),
    "column": lambda x: x.flatten(2).unsqueeze(3),
    "tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(len(x), 8, 6, 6),
    "unflattened": lambda x: x.flatten(2).unflatten(2, (6, 6)),
    "channels in front": lambda x: x.permute(0, 2, 3, 1),
    "one channel": lambda x: x[:, :1],
    "no batch": lambda x: x[0],
    "flat": lambda x: x.flatten(2),
}
POOLS: list[nn.Module] = [
    nn.MaxPool1d(2),
    nn.MaxPool1d(1, 2),
    nn.AvgPool1d(3, 1, 1),
    nn.AvgPool1d((1,), 3),
    nn.AdaptiveAvgPool1d(3),
    nn.MaxPool2d((1, 2)),
    nn.MaxPool2d(1, 2),
    nn.MaxPool2d(1, 4, ceil_mode=True),
    nn.MaxPool2d((1, 1), (2, 3)),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d((1, 2)),
    nn.AvgPool2d(1, 2),
    nn.AvgPool2d(3, 2, 1),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.AdaptiveAvgPool2d(1),
    nn.Upsample(scale_factor=2),
    nn.Upsample(size=5, mode="bilinear", align_corners=True),
    nn.UpsamplingNearest2d(scale_factor=2),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("view", VIEWS)
def test_every_order_of_memory(view: str, images: int, backend: str) -> None:
    dense = torch.quantize_per_tensor(X[:images], 0.03, 100, torch.quint8).contiguous(memory_format=torch.channels_last)
    q = VIEWS[view](dense)
    count = 0
    with use_backend(backend):
        for pool in POOLS:
            is_1d = type(pool).__name__.endswith("1d")
            if (is_1d and q.dim() != 3) or (isinstance(pool, nn.Upsample) and q.dim() != 4):
                continue
            try:
                expected = pool(q.dequantize())
            except RuntimeError:  # the image is smaller than the kernel
                continue
            model = nn.Sequential(copy.deepcopy(pool))
            use_int8_pools(model)
            output = model(q)
            assert output.shape == expected.shape, pool
            assert (output.dequantize() - expected).abs().max() <= 0.0301, pool
            count += 1
    assert count > 5


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_pools_in_torchscript() -> None:
    for pool in POOLS:
        if pool.__dict__.get("output_size") == (None, 3):  # torch cannot script it either
            continue
        model = nn.Sequential(copy.deepcopy(pool))
        use_int8_pools(model)
        q = torch.quantize_per_tensor(X, 0.03, 100, torch.quint8)
        q = q.flatten(2) if type(pool).__name__.endswith("1d") else q
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(model), file)
        file.seek(0)
        assert torch.equal(torch.jit.load(file)(q).int_repr(), model(q).int_repr())


def test_pools_with_options_that_kernels_ignore_stay_as_they_are() -> None:
    pools = [
        nn.MaxPool1d(3, dilation=2),
        nn.MaxPool2d(3, dilation=(1, 2)),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool1d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
    ]
    model = nn.Sequential(*pools)
    use_int8_pools(model)
    assert [type(pool) for pool in model] == [type(pool) for pool in pools]


FORWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "pool of tokens": lambda x: F.max_pool1d(x.flatten(2), 2),
    "mean of tokens": lambda x: F.avg_pool1d(x.flatten(2), 2),
    "image from tokens": lambda x: F.max_pool2d(x.flatten(2).transpose(1, 2).mT.reshape(len(x), 8, 6, 6), 2),
    "larger image from tokens": lambda x: F.interpolate(x.flatten(2).unflatten(2, (6, 6)), scale_factor=2.0),
    "as large as another": lambda x: F.interpolate(x.flatten(2).unflatten(2, (6, 6)), x.shape[2:], mode="bilinear"),
    "every second pixel": lambda x: F.max_pool2d(x, 1, 2),
    "every second pixel by name": lambda x: F.avg_pool2d(x, kernel_size=(1, 1), stride=2),
    "every second token": lambda x: F.max_pool1d(x.flatten(2), kernel_size=1, stride=2),
    "tokens as an image": lambda x: F.max_pool2d(x.flatten(2), (1, 2)),
    "mean of tokens as an image": lambda x: F.avg_pool2d(x.flatten(2), (1, 2)),
    "dilated": lambda x: F.max_pool2d(x, kernel_size=3, stride=1, dilation=2),
    "before a function in float": lambda x: F.gelu(F.max_pool2d(x, 1, 2)),
    "between functions in float": lambda x: F.gelu(F.avg_pool2d(F.gelu(x), 2)),
}
MODULES: dict[str, nn.Module] = {
    "dilated": nn.MaxPool2d(3, 1, 1, dilation=2),
    "dilated tokens": nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3, 1, 1, 2)),
    "averaged tokens": nn.Sequential(nn.Flatten(2), nn.AvgPool1d(3, 1, 1, count_include_pad=False)),
}


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 8, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*FORWARDS, *(f"module: {name}" for name in MODULES)])
def test_model(name: str, backend: str) -> None:
    function = FORWARDS[name] if name in FORWARDS else copy.deepcopy(MODULES[name.removeprefix("module: ")])
    model = Model(function).eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    with torch.no_grad():
        for x in (X, X[:1], torch.cat([X, X])):
            expected = model(x)
            error = int8(x) - expected
            assert 10 * (expected.square().sum() / error.square().sum()).log10() > 30


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_relu", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
@pytest.mark.parametrize("exponent", [-40, -20, -15, -13, 0, 7, 9, 20])
def test_sum_of_tensors_of_different_size(exponent: int, has_relu: bool, backend: str) -> None:
    """qnnpack rejects steps that differ by more than 2 ** 14."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            total = self.left(x) + self.right(x)
            return F.relu(total) if has_relu else total

    model = Sum().eval()
    with torch.no_grad():
        for parameter in model.right.parameters():
            parameter.mul_(2.0**exponent)
        int8 = quantized.quantize(model, [X], backend=backend)
        error = int8(X) - model(X)
        assert 10 * (model(X).square().sum() / error.square().sum()).log10() > 30
        script = torch.jit.script(int8)
        with use_backend(backend):
            assert torch.equal(script(X), int8(X))


def test_pool_of_single_pixels_shows_its_strides() -> None:
    model = nn.Sequential(nn.MaxPool2d(1, (2, 3)))
    use_int8_pools(model)
    assert isinstance(model[0], Subsampling)
    assert repr(model[0]) == "Subsampling(strides=(2, 3))"
