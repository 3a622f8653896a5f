"""Models that cannot be trained are refused before training, and what surrounds a model stays as it is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ENGINES = ["eager", "pt2e"]


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Binary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(Straight.apply(self.first(x)))
        return output


def test_backward_methods_are_not_lost() -> None:
    with pytest.raises(ValueError, match="it calls Straight of .*: use engine='eager'"):
        quantized.prepare_qat(Binary(), X, engine="pt2e")
    prepared = quantized.prepare_qat(Binary(), X)
    prepared(X).square().mean().backward()
    gradients = [parameter.grad for parameter in prepared.parameters() if parameter.shape == (8, 3, 3, 3)]
    assert gradients[0] is not None
    assert gradients[0].abs().sum() > 0


class FrozenNorm(nn.Module):
    def __init__(self, overrides: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.overrides = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), overrides

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        if self.overrides:
            self.norm.eval()
        return self


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("overrides", "is_eval"), [(True, True), (True, False), (False, True)])
def test_norms_in_eval_mode_are_not_trained(overrides: bool, is_eval: bool, engine: str) -> None:
    model = FrozenNorm(overrides)
    model.norm.train(not is_eval)
    with pytest.raises(ValueError, match="norm stays in eval mode: to keep their statistics, pass tnn.replace") as info:
        quantized.prepare_qat(model, X, engine=engine)
    advice = str(info.value).partition("pass ")[2]
    frozen = eval(advice, {"nn": nn, "tnn": tnn, "model": model})
    prepared = quantized.prepare_qat(frozen, X, engine=engine)
    assert prepared(X).shape == (4, 8, 14, 14)


def test_other_norms_in_eval_mode_are_not_trained() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    model[1].eval()
    with pytest.raises(ValueError, match=r"1 stays in eval mode: only BatchNorm2d can .* call model\.train\(\)"):
        quantized.prepare_qat(model, X[:, 0, 0])
    quantized.prepare_qat(model.train(), X[:, 0, 0])


@pytest.mark.parametrize("engine", ENGINES)
def test_random_numbers_are_those_of_before(engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    quantized.prepare_qat(model, X, engine=engine)
    quantized.quantize(model.eval(), [X], engine=engine)
    assert torch.equal(before, torch.get_rng_state())


def test_nan_in_training_spoils_no_range() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    prepared = quantized.prepare_qat(model, X, engine="pt2e")
    prepared(X)
    with pytest.raises(ValueError, match="^inputs must not contain NaN"):
        prepared(torch.where(X > 2, torch.nan, X))
    prepared(X)
    assert quantized.convert(prepared)(X).isfinite().all()


class Boxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(72, 4)
        self.calls: list[tuple[int, int]] = []

    def forward(self, x: Tensor, boxes: Tensor | list[Tensor]) -> Tensor:
        self.calls.append((x.shape[0], len(boxes)))
        pooled: Tensor = roi_align(self.conv(x), boxes, (3, 3), sampling_ratio=2)
        output: Tensor = self.linear(pooled.flatten(1))
        return output


@pytest.mark.parametrize("images", [2, 3])
def test_images_and_their_boxes_stay_together(images: int) -> None:
    torch.manual_seed(0)
    model, x = Boxes().eval(), torch.randn(images, 3, 16, 16)
    boxes = [torch.tensor([[float(i), 0, 8, 8], [2, 3, 12, 14]]) for i in range(images)]
    int8 = quantized.quantize(model, [(x, boxes)])
    assert decibels(model(x, boxes), int8(x, boxes)) > 25
    assert set(model.calls) == {(images, images)}
    with pytest.raises(TypeError, match="^inputs must not be lists with a tensor for each image for engine='pt2e'"):
        quantized.quantize(model, [(x, boxes)], engine="pt2e")


@pytest.mark.parametrize("engine", ENGINES)
def test_coordinates_that_floats_read_are_not_rounded(engine: str) -> None:
    torch.manual_seed(0)
    model, x = Boxes().eval(), torch.randn(4, 3, 64, 64)
    corners = 24 * torch.rand(16, 2)
    boxes = torch.cat([torch.arange(16).view(-1, 1) % 4, corners, corners + 4 + 36 * torch.rand(16, 2)], 1)
    int8 = quantized.quantize(model, [(x, boxes)], engine=engine)
    assert decibels(model(x, boxes), int8(x, boxes)) > 28


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft2(self.first(x))
        output: Tensor = self.last(torch.fft.irfft2(z * 0.5 + z * z, s=x.shape[2:]))
        return output


@pytest.mark.parametrize("engine", ENGINES)
def test_complex_tensors_stay_as_they_are(engine: str) -> None:
    torch.manual_seed(0)
    model = Spectrum().eval()
    assert decibels(model(X), quantized.quantize(model, [X], engine=engine)(X)) > 25


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_prepared_in_inference_mode_can_be_trained(engine: str, is_inside: bool) -> None:
    with torch.inference_mode(is_inside):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    with torch.inference_mode():
        prepared = quantized.prepare_qat(model, X.clone(), engine=engine)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in prepared.parameters()]
    prepared(X).square().mean().backward()
    optimizer.step()
    assert not any(map(torch.equal, prepared.parameters(), before))
    assert torch.isfinite(quantized.convert(prepared)(X)).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_prepared_model_stays_in_float32(engine: str) -> None:
    prepared = quantized.prepare_qat(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), X, engine=engine)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=f"prepared model must stay in float32, got {dtype}: .*torch.autocast"):
            prepared.to(dtype)
    assert prepared(X).dtype == torch.float32


class Recurrent(nn.Module):
    """Reads the rows of an image in turn."""

    def __init__(self, cls: type[nn.RNNBase], dropout: float) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(6, 4)
        self.recurrent = cls(8, 6, num_layers=2, dropout=dropout, batch_first=True)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.recurrent(self.conv(x).mean(3).transpose(1, 2))
        output: Tensor = self.head(rows[:, -1])
        return output


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("cls", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_in_graph(cls: type[nn.RNNBase], dropout: float) -> None:
    torch.manual_seed(0)
    model = Recurrent(cls, dropout)
    with pytest.warns(UserWarning, match="takes images of 16 x 16 only"):  # torch.export unrolls the loop over rows
        prepared = quantized.prepare_qat(model, X, engine="pt2e")
    prepared(X).square().mean().backward()
    assert torch.equal(prepared(X), prepared(X)) == (dropout == 0)
    prepared.eval()
    model.eval()
    assert decibels(model(X), prepared(X)) > 25
    assert decibels(prepared(X), quantized.convert(prepared)(X)) > 40


@pytest.mark.parametrize("engine", ENGINES)
def test_diverged_training_is_not_converted(engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    prepared = quantized.prepare_qat(model, X, engine=engine)
    prepared(X)
    with torch.no_grad():
        next(value for key, value in prepared.named_parameters() if key.endswith("3.weight"))[0] = torch.nan
    with pytest.raises(ValueError, match=r"^model must have finite parameters .*, 3\.weight has NaN"):
        quantized.convert(prepared)


def test_converting_names_the_model_in_a_wrapper() -> None:
    prepared = quantized.prepare_qat(nn.Sequential(nn.Conv2d(3, 8, 3)), X)
    with pytest.raises(ValueError, match=r"pass .*model\.module"):
        quantized.convert(nn.DataParallel(prepared))
