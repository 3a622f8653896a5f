import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import data
import models
import pytest
import torch
import torchvision
import train
from torch import nn

from torchvision_layers import nn as tnn

# Python 3.12 and later warn where a process with threads is forked, which is how torch starts its loader workers.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """Adds a small model of each kind, and one whose output turns NaN at the sixth batch it is trained on."""
    tiny = partial(narrow, models.resnet.resnet18, 0.125)
    monkeypatch.setitem(models.MODELS, "resnet18_tiny", tiny)
    monkeypatch.setitem(models.MODELS, "mobilenet_v2_tiny", partial(narrow, models.mobilenet.mobilenet_v2, 0.1))
    monkeypatch.setitem(models.MODELS, "poisoned", Poisoned)


def narrow(make, share: float, num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> nn.Module:
    return make(num_classes, share * width_mult, depth_mult)


class Poisoned(nn.Module):
    def __init__(self, num_classes: int, width_mult: float = 1.0, depth_mult: float = 1.0) -> None:
        super().__init__()
        self.model = nn.Sequential(tnn.ConvNormAct(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, num_classes)
        self.trained = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.trained += self.training
        return self.fc(self.model(x)) * (float("nan") if self.trained == 6 else 1)


@pytest.fixture
def run(photos, tmp_path):
    """Trains for two epochs of four batches, or what the flags say; results go to a folder called ``name``."""

    def run_train(*flags: str, name: str = "run") -> dict:
        return train.main(train.get_parser().parse_args([*flags_for(photos, tmp_path / name), *flags]))

    return run_train


def flags_for(photos: Path, output_dir: Path) -> list[str]:
    flags = ["--dataset", "imagefolder", "--data-path", str(photos), "--output-dir", str(output_dir)]
    return [*flags, "--model", "resnet18_tiny", "--image-size", "32", "--batch-size", "4", "--epochs", "2"]


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same_weights(one: dict, other: dict) -> None:
    assert one["model"].keys() == other["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2"])
def test_what_training_leaves_behind(run, photos, tmp_path, model, capsys):
    result = run("--model", model, "--epochs", "1")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pth", "curves.png", "model.pth"]
    assert [entry["epoch"] for entry in result["history"]] == [1]
    found = saved(tmp_path / "run" / "model.pth")
    assert (found["model_name"], found["num_classes"], found["classes"]) == (model, 2, ["blue", "red"])
    assert str(tmp_path) not in str({key: value for key, value in found.items() if key != "model"})

    # torchvision's model with these weights is as good as was said.
    twin = getattr(torchvision.models, model)(num_classes=2).eval()
    twin.load_state_dict(found["model"])
    _, test, _ = data.load_datasets("imagefolder", photos, 32)
    with torch.inference_mode():
        right = [twin(image[None]).argmax().item() == label for image, label in test]
    assert result["test_accuracy"] == found["test_accuracy"] == sum(right) / len(right)
    assert f"{model}: test accuracy {result['test_accuracy']:.2%}" in capsys.readouterr().out


def test_training_learns(tmp_path):
    flags = ["--model", "resnet18_tiny", "--image-size", "32", "--epochs", "3", "--output-dir", str(tmp_path)]
    result = train.main(train.get_parser().parse_args(flags))
    assert result["test_accuracy"] > 0.8


@forks
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_can_be_repeated_to_the_bit(run, tmp_path, workers):
    first = run("--model", "mobilenet_v2_tiny", "--workers", workers, name="first")
    second = run("--model", "mobilenet_v2_tiny", "--workers", workers, name="second")
    assert first == second
    one = saved(tmp_path / "first" / "checkpoint.pth")
    assert_same_weights(one, saved(tmp_path / "second" / "checkpoint.pth"))
    run("--model", "mobilenet_v2_tiny", "--seed", "1", name="third")
    other = saved(tmp_path / "third" / "checkpoint.pth")
    assert not torch.equal(one["model"]["classifier.1.weight"], other["model"]["classifier.1.weight"])


@pytest.mark.parametrize("model", ["resnet18_tiny", "mobilenet_v2_tiny"])
def test_an_interrupted_run_resumes_to_the_same_weights(run, tmp_path, monkeypatch, model):
    whole = run("--model", model, "--epochs", "3", name="whole")

    train_one_epoch = train.train_one_epoch

    def interrupted(*args, epoch, **kwargs):
        result = train_one_epoch(*args, epoch=epoch, **kwargs)
        if epoch == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(train, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("--model", model, "--epochs", "3", name="cut")
    monkeypatch.setattr(train, "train_one_epoch", train_one_epoch)
    checkpoint = tmp_path / "cut" / "checkpoint.pth"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.pth"]
    assert saved(checkpoint)["history"] == whole["history"][:2]

    torch.rand(5)  # where the generators stand must not matter
    assert run("--model", model, "--epochs", "3", "--resume", str(checkpoint), name="cut") == whole
    for file in ("checkpoint.pth", "model.pth"):
        assert_same_weights(saved(tmp_path / "cut" / file), saved(tmp_path / "whole" / file))


def test_a_killed_run_leaves_a_checkpoint_that_resumes(run, photos, scripts, tmp_path):
    flags = [*flags_for(photos, tmp_path / "killed"), "--model", "mobilenet_v2_half", "--epochs", "4"]
    checkpoint = tmp_path / "killed" / "checkpoint.pth"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(scripts.parents[1])}
    with subprocess.Popen(
        [sys.executable, str(scripts / "train.py"), *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2)  # into the next epoch
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pth").exists()

    resumed = train.main(train.get_parser().parse_args([*flags, "--resume", str(checkpoint)]))
    assert resumed == run("--model", "mobilenet_v2_half", "--epochs", "4", name="whole")
    assert_same_weights(saved(checkpoint), saved(tmp_path / "whole" / "checkpoint.pth"))


def test_resuming_a_finished_run_changes_nothing(run, tmp_path):
    whole = run()
    before = saved(tmp_path / "run" / "model.pth")
    (tmp_path / "run" / "model.pth").unlink()
    assert run("--resume", str(tmp_path / "run" / "checkpoint.pth")) == whole
    assert_same_weights(saved(tmp_path / "run" / "model.pth"), before)


def test_testing_only(run, tmp_path, capsys):
    trained = run()
    for file in ("checkpoint.pth", "model.pth"):
        result = run("--test-only", "--weights", str(tmp_path / "run" / file), name="unused")
        assert result["test_accuracy"] == trained["test_accuracy"]
    assert not (tmp_path / "unused").exists()


def test_weights_are_started_from(run, tmp_path):
    run()
    run("--weights", str(tmp_path / "run" / "model.pth"), "--lr", "1e-12", "--weight-decay", "0", name="next")
    before, after = saved(tmp_path / "run" / "model.pth")["model"], saved(tmp_path / "next" / "model.pth")["model"]
    torch.testing.assert_close(after["fc.weight"], before["fc.weight"])


def loader_of(count: int, batch_size: int) -> data.ImageLoader:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = [number % 2 for number in range(count)]
    return data.ImageLoader(data.Images(images, labels, torch.clone, nn.Identity()), batch_size)


def test_the_order_is_new_each_epoch_in_training_alone():
    train_loader, test_loader, _ = train.load_data(train.get_parser().parse_args(["--image-size", "8"]))
    for loader, shuffled in ((train_loader, True), (test_loader, False)):
        first, second = (torch.cat([labels for _, labels in loader]).tolist() for _ in range(2))
        assert (first != second) == (first != loader.dataset.labels) == shuffled
        assert sorted(first) == sorted(second) == sorted(loader.dataset.labels)


def test_an_epoch_reports_means_over_images():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    loader = loader_of(10, batch_size=4)
    result = train.train_one_epoch(model, loader, torch.optim.SGD(model.parameters(), lr=0.0), epoch=1)
    images, labels = loader.dataset.sources, torch.tensor(loader.dataset.labels)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(model(images), labels).item(), rel=1e-5)
    assert result.accuracy == (model(images).argmax(1) == labels).sum().item() / 10


def test_a_batch_of_one_image_is_left_out():
    model = models.build_model("resnet18_tiny", 2)  # its last map is 1×1 here: one image has no variance
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    result = train.train_one_epoch(model, loader_of(9, batch_size=4), optimizer, scheduler, epoch=1)
    assert result.small_batches == 1
    assert scheduler.last_epoch == 2
    with pytest.raises(ValueError, match="epoch 3: no batch holds two readable images"):
        train.train_one_epoch(model, loader_of(1, batch_size=4), optimizer, epoch=3)


def test_a_batch_of_one_image_is_told_of(run, capsys):
    run("--batch-size", "5", "--epochs", "1")  # 16 images
    assert "batches of one image skipped: 1" in capsys.readouterr().out


@pytest.mark.parametrize("steps", range(1, 12))
def test_the_schedule_ends_low_after_any_number_of_steps(steps):
    args = train.get_parser().parse_args([])
    optimizer, scheduler = train.make_optimizer(nn.Linear(1, 1), args, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) <= args.lr + 1e-9
    assert rates[-1] < 0.01 * args.lr or steps == 1


def test_unreadable_images_stop_training_or_are_counted(run, photos, capsys):
    damaged = photos / "blue" / "blue3.png"
    damaged.write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read as an image") as caught:
        run()
    assert str(damaged) in str(caught.value)
    result = run("--on-bad-image", "skip")
    out, err = capsys.readouterr()
    assert len(result["history"]) == 2
    assert err.count(f"skipped {damaged}") == 1
    last_epoch, final = out.splitlines()[-2:]
    assert last_epoch.startswith("epoch 2/2")
    assert last_epoch.endswith(", unreadable images skipped: 1")
    assert final.endswith(", unreadable images skipped: 1")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(run, tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 2"):
        run("--model", "poisoned")
    checkpoint = saved(tmp_path / "run" / "checkpoint.pth")
    assert len(checkpoint["history"]) == 1
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_weights_that_the_last_step_spoilt_are_not_saved(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the (test )?loss is (nan|inf)"):
        run("--lr", "1e30", "--batch-size", "16", "--epochs", "1")  # one step
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet19"], "model must be one of .*resnet18.*got 'resnet19'"),
        (["--dataset", "mnist"], "dataset must be one of digits, imagefolder; got 'mnist'"),
        (["--data-path", "nowhere"], "data_path nowhere does not exist"),
        (["--image-size", "4"], "image_size must be at least 8, got 4"),
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--batch-size", "1"], "batch_size must be at least 2.*got 1"),
        (["--lr", "nan"], "lr must be positive and finite; got nan"),
        (["--test-only"], "test_only needs weights"),
        (["--weights", "a", "--resume", "b"], "resume and weights cannot be given together"),
        (["--weights", "nowhere.pth"], r"No such file.*nowhere\.pth"),
    ],
)
def test_wrong_flags(run, tmp_path, flags, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(*flags)
    assert not (tmp_path / "run").exists()


def test_output_dir_below_a_file(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output_dir .*file/run cannot be written to"):
        run("--output-dir", str(tmp_path / "file" / "run"))


def test_checkpoints_that_do_not_fit(run, photos, draw, tmp_path):
    run()
    checkpoint, weights = str(tmp_path / "run" / "checkpoint.pth"), str(tmp_path / "run" / "model.pth")
    for flag in ("--resume", "--weights"):
        with pytest.raises(ValueError, match="of resnet18_tiny with 2 classes, not of mobilenet_v2_tiny with 2"):
            run(flag, checkpoint, "--model", "mobilenet_v2_tiny")
    with pytest.raises(ValueError, match=r"model\.pth holds weights alone"):
        run("--resume", weights)
    with pytest.raises(ValueError, match=r"checkpoint\.pth was made with epochs 2, not 3"):
        run("--resume", checkpoint, "--epochs", "3")
    draw(photos / "red" / "more", 5)
    with pytest.raises(ValueError, match=r"checkpoint\.pth was made with training images 16, not 20"):
        run("--resume", checkpoint)
    shutil.rmtree(photos / "red" / "more")
    (photos / "red").rename(photos / "green")
    for flags in (["--resume", checkpoint], ["--weights", weights, "--test-only"]):
        with pytest.raises(ValueError, match=r"was made with classes \['blue', 'red'\], not \['blue', 'green'\]"):
            run(*flags)


def test_the_command_line_ends_with_one_line_and_status_2(scripts, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(scripts.parents[1])}
    command = [sys.executable, str(scripts / "train.py"), "--dataset", "imagefolder", "--data-path", "nowhere"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: data_path nowhere does not exist\n"
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
