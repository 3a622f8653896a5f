"""An epoch of training, on models so small that its figures can be worked out."""

import math
from collections.abc import Iterator

import distributed
import models
import pytest
import torch
from data import Images
from engine import Options, train_one_epoch
from interruption import StopAsked, StopRequest
from loading import Batch, ImageLoader
from optimization import Schedule
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from training import Training


def loader_of(count: int, batch_size: int) -> ImageLoader:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = [number % 2 for number in range(count)]
    return ImageLoader(Images(images, labels, torch.clone, nn.Identity()), batch_size)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))


def gradients(model: nn.Module, images: Tensor, labels: Tensor, **options: float) -> list[Tensor]:
    loss = nn.functional.cross_entropy(model(images), labels, **options)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_an_epoch_reports_means_over_images():
    model, loader = linear(), loader_of(10, batch_size=4)
    result = train_one_epoch(Training(model, SGD(model.parameters(), lr=0.0)), loader)
    images, labels = loader.dataset.sources, torch.tensor(loader.dataset.labels)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(model(images), labels).item(), rel=1e-5)
    assert result.accuracy == (model(images).argmax(1) == labels).sum().item() / 10


def test_a_batch_of_one_image_is_left_out():
    model = models.build_model("resnet18", 2, width_mult=0.125)  # its last map is 1×1 here: one image has no variance
    optimizer = SGD(model.parameters(), lr=0.1)
    training = Training(model, optimizer, schedule=Schedule(StepLR(optimizer, 1), is_by_batch=True))
    result = train_one_epoch(training, loader_of(9, batch_size=4))
    assert result.small_batches == 1
    assert training.schedule.scheduler.last_epoch == 2
    with pytest.raises(ValueError, match="epoch 3: no batch holds two readable images"):
        train_one_epoch(Training(model, optimizer, epoch=3), loader_of(1, batch_size=4))


@pytest.mark.parametrize("norm", [None, 0.01])
def test_a_step_by_hand(norm):
    """Label smoothing and clipping by their formulas."""
    model, loader = linear(), loader_of(4, batch_size=4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, labels = loader.dataset.sources, torch.tensor(loader.dataset.labels)
    expected = gradients(model, images, labels, label_smoothing=0.2)
    length = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert length > 0.01
    factor = 1 if norm is None else norm / length
    options = Options(label_smoothing=0.2, clip_grad_norm=norm)
    train_one_epoch(Training(model, SGD(model.parameters(), lr=0.5)), loader, options)
    for parameter, start, gradient in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), start - 0.5 * factor * gradient, rtol=1e-4, atol=1e-7)


def test_mixed_batches_train_on_mixed_labels():
    """Half of each image's neighbour, and half of its label."""

    class Half(v2.MixUp):
        def make_params(self, flat_inputs):
            return {**super().make_params(flat_inputs), "lam": 0.5}

    model, loader = linear(), loader_of(4, batch_size=4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, labels = loader.dataset.sources, nn.functional.one_hot(torch.tensor(loader.dataset.labels)).float()
    expected = gradients(model, (images + images.roll(1, 0)) / 2, (labels + labels.roll(1, 0)) / 2)
    train_one_epoch(Training(model, SGD(model.parameters(), lr=1.0)), loader, Options(mixing=Half(num_classes=2)))
    for parameter, start, gradient in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), start - gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (2, 1), (1, 2)])
def test_the_average(steps, first):
    """Of the weights after each batch, or each second; a copy of the last before the epoch that averages."""
    model, loader = linear(), loader_of(16, batch_size=4)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    seen: list[Tensor] = []
    training = Training(model, SGD(model.parameters(), lr=0.1), average=average)
    options = Options(ema_steps=steps, ema_from=first)
    train_one_epoch(training, loader, options, after_step=lambda: seen.append(model[1].bias.detach().clone()))
    assert len(seen) == 4
    taken = seen[steps - 1 :: steps]
    expected = taken[0]
    for bias in taken[1:]:
        expected = (expected + bias) / 2
    torch.testing.assert_close(average.module[1].bias, expected if first == 1 else seen[-1])


@pytest.mark.parametrize("count", [16, 17])  # the last batch of 17 is one image, which is left out
def test_an_epoch_of_fewer_batches_than_between_two_updates_is_averaged(count):
    model = linear()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    start = model[1].bias.detach().clone()
    training = Training(model, SGD(model.parameters(), lr=0.1), average=average)
    train_one_epoch(training, loader_of(count, batch_size=4), Options(ema_steps=32))
    assert average.n_averaged == 1
    assert torch.equal(average.module[1].bias, model[1].bias)
    assert not torch.equal(model[1].bias, start)


def test_half_precision_computes_in_it():
    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            types.add(y.dtype)
            return y

    types: set[torch.dtype] = set()
    model = nn.Sequential(nn.Flatten(), Watched(3 * 32 * 32, 2))
    training = Training(model, SGD(model.parameters(), lr=0.1))
    train_one_epoch(training, loader_of(4, 4), Options(amp=torch.bfloat16))
    assert types == {torch.bfloat16}
    assert model[1].weight.dtype == torch.float32


def test_the_scaler_leaves_out_what_overflows():
    model = linear()
    before = model[1].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # far beyond float16
    training = Training(model, SGD(model.parameters(), lr=0.1), scaler=scaler)
    options = Options(amp=torch.float16)
    train_one_epoch(training, loader_of(4, 4), options)
    assert torch.equal(model[1].weight, before)
    assert scaler.get_scale() == 2.0**59


def test_gradients_are_clipped_after_the_scaler():
    model = linear()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    training = Training(model, SGD(model.parameters(), lr=1.0), scaler=scaler)
    train_one_epoch(training, loader_of(4, 4), Options(amp=torch.float16, clip_grad_norm=0.01))
    steps = [
        (parameter.detach() - start).flatten() for parameter, start in zip(model.parameters(), before, strict=True)
    ]
    assert torch.cat(steps).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_channels_last():
    layouts = []

    class Watching(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    model = nn.Sequential(Watching(), linear()[1])
    for wanted in (True, False):
        training = Training(model, SGD(model.parameters(), lr=0.1))
        train_one_epoch(training, loader_of(4, 4), Options(channels_last=wanted))
        assert layouts.pop() == wanted


def test_a_request_to_stop_ends_before_the_next_batch_and_the_rest_follows():
    whole, cut = (Training(model, SGD(model.parameters(), lr=0.1)) for model in (linear(), linear()))
    expected = train_one_epoch(whole, loader_of(16, 4))
    stop = StopRequest()

    def ask() -> None:
        if cut.step == 3:
            stop.signum = 15

    with pytest.raises(StopAsked) as caught:
        train_one_epoch(cut, loader_of(16, 4), stop=stop, after_step=ask)
    assert (caught.value.signum, cut.step) == (15, 3)
    assert train_one_epoch(cut, loader_of(16, 4)) == expected
    assert torch.equal(cut.model[1].weight, whole.model[1].weight)


@pytest.mark.parametrize("error", [RuntimeError("worker is gone"), EOFError(), ConnectionRefusedError()])
@pytest.mark.parametrize("signum", [0, 15])
def test_a_signal_that_ends_the_readers_as_well_is_a_request_to_stop(monkeypatch, signum, error):
    """Any other end of theirs is an error; which one, depends on what was just read from them."""
    model, loader, stop = linear(), loader_of(16, 4), StopRequest()
    training = Training(model, SGD(model.parameters(), lr=0.1))
    whole = loader.batches

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        yield next(whole(epoch, start))
        stop.signum = signum
        raise error

    monkeypatch.setattr(loader, "batches", batches)
    with pytest.raises(StopAsked if signum else type(error)):
        train_one_epoch(training, loader, stop=stop)
    assert training.step == 1


def test_a_loss_that_is_nan_in_another_process_stops_this_one_too(monkeypatch):
    """Or the other would be waited for; the images to blame are named where they are."""

    def exchange(values: list[float], device: torch.device) -> Tensor:
        other = [math.nan, *values[1:]] if len(values) == 3 else values
        return torch.tensor([values, other], dtype=torch.float64)

    monkeypatch.setattr(distributed, "exchange", exchange)
    model = linear()
    before = model[1].weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 1; try a lower lr$"):
        train_one_epoch(Training(model, SGD(model.parameters(), lr=0.1)), loader_of(4, 4))
    assert torch.equal(model[1].weight, before)


def test_each_process_draws_for_itself(monkeypatch):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        model = linear()
        train_one_epoch(Training(model, SGD(model.parameters(), lr=0.1)), loader_of(4, 4))
        seeds.append(torch.initial_seed())
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_average_that_is_not_finite_is_no_state_to_save(value):
    model = linear()
    training = Training(model, SGD(model.parameters(), lr=0.1), average=AveragedModel(model))
    assert training.is_finite()
    training.average.module[1].bias.data[0] = value
    assert not training.is_finite()


def test_lines_on_how_an_epoch_goes():
    model, lines = linear(), []
    training = Training(model, SGD(model.parameters(), lr=0.1))
    train_one_epoch(training, loader_of(16, 4), Options(print_freq=2), say=lines.append)
    assert [line.partition(": loss ")[0] for line in lines] == ["epoch 1, step 2/4", "epoch 1, step 4/4"]
    assert lines[0].endswith("images/s")
