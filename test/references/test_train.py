import csv
import os
import re
import shutil
import subprocess
import sys
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


LEFT = ["checkpoint.pth", "confusion.png", "curves.png", "log.csv", "model.pth", "train.log"]


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
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == LEFT
    assert [entry["epoch"] for entry in result["history"]] == [1]
    command, versions, epoch, end = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert command.startswith(f"$ python references/classification/train.py --model {model} --dataset imagefolder")
    assert torch.__version__ in versions
    assert epoch.startswith("epoch 1/1: loss")
    assert end.startswith(f"{model}: test accuracy")
    with open(tmp_path / "run" / "log.csv", newline="") as table:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(table)]
    assert rows == result["history"]
    found = saved(tmp_path / "run" / "model.pth")
    assert (found["model_name"], found["num_classes"], found["classes"]) == (model, 2, ["blue", "red"])
    assert str(tmp_path) not in str({key: value for key, value in found.items() if key != "model"})
    assert found["model_arguments"] == {"width_mult": 1.0, "depth_mult": 1.0}

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


def test_a_batch_of_one_image_is_told_of(run, capsys):
    run("--batch-size", "5", "--epochs", "1")  # 16 images
    assert "batches of one image skipped: 1" in capsys.readouterr().out


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
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 2") as caught:
        run("--model", "poisoned")
    assert len(re.findall(r"/(?:blue|red)\d+\.png", str(caught.value))) == 4  # the images of the batch
    checkpoint = saved(tmp_path / "run" / "checkpoint.pth")
    assert len(checkpoint["history"]) == 1
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_weights_that_the_last_step_spoilt_are_not_saved(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"(the (test )?loss|a weight) is (nan|inf|not finite)"):
        run("--lr", "1e30", "--batch-size", "16", "--epochs", "1")  # one step
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet19"], "model must be one of .*resnet18.*got 'resnet19'"),
        (["--dataset", "mnist"], "dataset must be one of digits, .*; got 'mnist'"),
        (["--data-path", "nowhere"], "data_path nowhere does not exist"),
        (["--image-size", "4"], "image_size must be at least 8, got 4"),
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--batch-size", "1"], "batch_size must be at least 2.*got 1"),
        (["--lr", "nan"], "lr must be positive and finite; got nan"),
        (["--test-only"], "test_only needs weights"),
        (["--weights", "a", "--resume", "b"], "resume and weights cannot be given together"),
        (["--weights", "nowhere.pth"], r"No such file.*nowhere\.pth"),
        (["--width-mult", "0"], "width_mult must be positive and finite; got 0.0"),
        (["--mixup-alpha", "-1"], "mixup_alpha must be at least 0 and finite; got -1.0"),
        (["--random-erase", "2"], r"random_erase must be in \[0, 1\]; got 2.0"),
        (["--clip-grad-norm", "0"], "clip_grad_norm must be positive and finite; got 0.0"),
        (["--lr-warmup-epochs", "2"], "lr_warmup_epochs must be below epochs, 2; got 2"),
        (["--model-ema-decay", "1"], r"model_ema_decay must be in \[0, 1\); got 1.0"),
        (["--device", "nothing"], "device must be one that torch knows; got 'nothing'"),
        (["--device", "meta:3"], "device must be one that computes; got 'meta:3'"),
        (["--fsdp"], "fsdp needs the processes of torchrun"),
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


@pytest.mark.slow
def test_a_compiled_model_trains_as_it_is(run, tmp_path):
    """On the same batches, by steps too small to matter; what is saved knows nothing of it.

    Without dropout, for which compiled code draws other numbers.
    """
    flags = ["--model", "resnet18_tiny", "--lr", "1e-12", "--epochs", "1"]
    plain, compiled = (run(*flags, *extra, name=str(len(extra))) for extra in ([], ["--compile"]))
    assert compiled["history"][0]["train_loss"] == pytest.approx(plain["history"][0]["train_loss"], rel=1e-4)
    assert saved(tmp_path / "1" / "model.pth")["model"].keys() == saved(tmp_path / "0" / "model.pth")["model"].keys()
