"""One epoch of training, on models so small that its results can be computed by hand."""

import math
from collections.abc import Iterator

import models
import pytest
import torch
from common import distributed
from common.data.datasets import Images
from common.data.loading import Batch, ImageLoader
from common.runs.signals import StopRequest, StopRequested
from common.settings import EpochSettings
from common.training.engine import train_one_epoch
from common.training.optimization import Schedule
from common.training.state import TrainingState
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2


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


def test_result_is_a_mean_over_images():
    model, loader = linear(), loader_of(10, batch_size=4)
    result = train_one_epoch(TrainingState(model, SGD(model.parameters(), lr=0.0)), loader, EpochSettings())
    images, labels = loader.dataset.sources, torch.tensor(loader.dataset.labels)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(model(images), labels).item(), rel=1e-5)
    assert result.accuracy == (model(images).argmax(1) == labels).sum().item() / 10


def test_batch_of_one_image_is_skipped():
    model = models.build_model(
        "resnet18", 2, width_mult=0.125
    )  # its last feature map is 1×1: one image has no variance
    optimizer = SGD(model.parameters(), lr=0.1)
    state = TrainingState(model, optimizer, schedule=Schedule(StepLR(optimizer, 1), is_by_batch=True))
    result = train_one_epoch(state, loader_of(9, batch_size=4), EpochSettings())
    assert result.small_batches == 1
    assert state.schedule.scheduler.last_epoch == 2
    with pytest.raises(ValueError, match="epoch 3: no batch holds two readable images"):
        train_one_epoch(TrainingState(model, optimizer, epoch=3), loader_of(1, batch_size=4), EpochSettings())


@pytest.mark.parametrize("norm", [None, 0.01])
def test_step_by_hand(norm):
    """Label smoothing and clipping follow their formulas."""
    model, loader = linear(), loader_of(4, batch_size=4)
    initial = [parameter.detach().clone() for parameter in model.parameters()]
    images, labels = loader.dataset.sources, torch.tensor(loader.dataset.labels)
    expected = gradients(model, images, labels, label_smoothing=0.2)
    length = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert length > 0.01
    factor = 1 if norm is None else norm / length
    settings = EpochSettings(label_smoothing=0.2, clip_grad_norm=norm)
    train_one_epoch(TrainingState(model, SGD(model.parameters(), lr=0.5)), loader, settings)
    for parameter, start, gradient in zip(model.parameters(), initial, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), start - 0.5 * factor * gradient, rtol=1e-4, atol=1e-7)


def test_mixed_batches_train_on_mixed_labels():
    """Each image is averaged with its neighbour, and so are the labels."""

    class Half(v2.MixUp):
        def make_params(self, flat_inputs):
            return {**super().make_params(flat_inputs), "lam": 0.5}

    model, loader = linear(), loader_of(4, batch_size=4)
    initial = [parameter.detach().clone() for parameter in model.parameters()]
    images, labels = loader.dataset.sources, nn.functional.one_hot(torch.tensor(loader.dataset.labels)).float()
    expected = gradients(model, (images + images.roll(1, 0)) / 2, (labels + labels.roll(1, 0)) / 2)
    train_one_epoch(
        TrainingState(model, SGD(model.parameters(), lr=1.0)), loader, EpochSettings(), mixing=Half(num_classes=2)
    )
    for parameter, start, gradient in zip(model.parameters(), initial, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), start - gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (2, 1), (1, 2)])
def test_average(steps, first):
    """The average is updated after each ``steps`` batches; before epoch ``first`` it copies the last weights."""
    model, loader = linear(), loader_of(16, batch_size=4)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    biases: list[Tensor] = []
    state = TrainingState(model, SGD(model.parameters(), lr=0.1), average=average)
    settings = EpochSettings(model_ema_steps=steps, lr_warmup_epochs=first - 1)
    train_one_epoch(state, loader, settings, after_step=lambda: biases.append(model[1].bias.detach().clone()))
    assert len(biases) == 4
    averaged = biases[steps - 1 :: steps]
    expected = averaged[0]
    for bias in averaged[1:]:
        expected = (expected + bias) / 2
    torch.testing.assert_close(average.module[1].bias, expected if first == 1 else biases[-1])


@pytest.mark.parametrize("count", [16, 17])  # the last batch of 17 is one image, which is skipped
def test_short_epoch_updates_the_average(count):
    model = linear()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    start = model[1].bias.detach().clone()
    state = TrainingState(model, SGD(model.parameters(), lr=0.1), average=average)
    train_one_epoch(state, loader_of(count, batch_size=4), EpochSettings(model_ema_steps=32))
    assert average.n_averaged == 1
    assert torch.equal(average.module[1].bias, model[1].bias)
    assert not torch.equal(model[1].bias, start)


def test_half_precision():
    class RecordingLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            dtypes.add(y.dtype)
            return y

    dtypes: set[torch.dtype] = set()
    model = nn.Sequential(nn.Flatten(), RecordingLinear(3 * 32 * 32, 2))
    state = TrainingState(model, SGD(model.parameters(), lr=0.1))
    train_one_epoch(state, loader_of(4, 4), EpochSettings(amp="bfloat16"))
    assert dtypes == {torch.bfloat16}
    assert model[1].weight.dtype == torch.float32


def test_scaler_skips_overflowing_steps():
    model = linear()
    initial = model[1].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # far beyond float16
    state = TrainingState(model, SGD(model.parameters(), lr=0.1), scaler=scaler)
    settings = EpochSettings(amp="float16")
    train_one_epoch(state, loader_of(4, 4), settings)
    assert torch.equal(model[1].weight, initial)
    assert scaler.get_scale() == 2.0**59


def test_gradients_are_clipped_after_unscaling():
    model = linear()
    initial = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    state = TrainingState(model, SGD(model.parameters(), lr=1.0), scaler=scaler)
    train_one_epoch(state, loader_of(4, 4), EpochSettings(amp="float16", clip_grad_norm=0.01))
    steps = [
        (parameter.detach() - start).flatten() for parameter, start in zip(model.parameters(), initial, strict=True)
    ]
    assert torch.cat(steps).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_channels_last():
    layouts = []

    class RecordingFlatten(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    model = nn.Sequential(RecordingFlatten(), linear()[1])
    for channels_last in (True, False):
        state = TrainingState(model, SGD(model.parameters(), lr=0.1))
        train_one_epoch(state, loader_of(4, 4), EpochSettings(channels_last=channels_last))
        assert layouts.pop() == channels_last


def test_stop_before_the_next_batch_and_resume():
    whole, interrupted = (TrainingState(model, SGD(model.parameters(), lr=0.1)) for model in (linear(), linear()))
    expected = train_one_epoch(whole, loader_of(16, 4), EpochSettings())
    stop = StopRequest()

    def request() -> None:
        if interrupted.step == 3:
            stop.signum = 15

    with pytest.raises(StopRequested) as info:
        train_one_epoch(interrupted, loader_of(16, 4), EpochSettings(), stop=stop, after_step=request)
    assert (info.value.signum, interrupted.step) == (15, 3)
    assert train_one_epoch(interrupted, loader_of(16, 4), EpochSettings()) == expected
    assert torch.equal(interrupted.model[1].weight, whole.model[1].weight)


@pytest.mark.parametrize("error", [RuntimeError("worker is gone"), EOFError(), ConnectionRefusedError()])
@pytest.mark.parametrize("signum", [0, 15])
def test_signal_that_also_ends_the_workers_requests_a_stop(monkeypatch, signum, error):
    """Without a signal the end of a worker is an error, whose type depends on what was being read from it."""
    model, loader, stop = linear(), loader_of(16, 4), StopRequest()
    state = TrainingState(model, SGD(model.parameters(), lr=0.1))
    load_batches = loader.batches

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        yield next(load_batches(epoch, start))
        stop.signum = signum
        raise error

    monkeypatch.setattr(loader, "batches", batches)
    with pytest.raises(StopRequested if signum else type(error)):
        train_one_epoch(state, loader, EpochSettings(), stop=stop)
    assert state.step == 1


def test_nan_loss_in_another_process_stops_this_one(monkeypatch):
    """Otherwise this process would wait for the other; only the process with the NaN names the images."""

    def gather_rows(values: list[float], device: torch.device) -> Tensor:
        other = [math.nan, *values[1:]] if len(values) == 3 else values
        return torch.tensor([values, other], dtype=torch.float64)

    monkeypatch.setattr(distributed, "gather_rows", gather_rows)
    model = linear()
    initial = model[1].weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 1; try a lower lr$"):
        train_one_epoch(TrainingState(model, SGD(model.parameters(), lr=0.1)), loader_of(4, 4), EpochSettings())
    assert torch.equal(model[1].weight, initial)


def test_each_process_has_its_own_seed(monkeypatch):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        model = linear()
        train_one_epoch(TrainingState(model, SGD(model.parameters(), lr=0.1)), loader_of(4, 4), EpochSettings())
        seeds.append(torch.initial_seed())
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_average_must_be_finite(value):
    model = linear()
    state = TrainingState(model, SGD(model.parameters(), lr=0.1), average=AveragedModel(model))
    assert state.is_finite()
    state.average.module[1].bias.data[0] = value
    assert not state.is_finite()


def test_progress_lines():
    model, lines = linear(), []
    state = TrainingState(model, SGD(model.parameters(), lr=0.1))
    train_one_epoch(state, loader_of(16, 4), EpochSettings(print_freq=2), log=lines.append)
    assert [line.partition(": loss ")[0] for line in lines] == ["epoch 1, step 2/4", "epoch 1, step 4/4"]
    assert lines[0].endswith("images/s")
