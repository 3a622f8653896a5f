"""train.py: its files, results, resuming, and errors."""

import csv
import re
import shutil
from functools import partial
from pathlib import Path

import models
import pytest
import torch
import torchvision
import train
from common.data.datasets import load_datasets
from torch import nn

from torchvision_layers import nn as tnn

from ._support import load

# Python 3.12 and later warn if a process with threads is forked, as torch does for its workers.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """Adds two small models, and one whose output is NaN in its sixth training batch."""
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
        self.batches = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches += self.training
        return self.fc(self.model(x)) * (float("nan") if self.batches == 6 else 1)


@pytest.fixture
def run(photos, tmp_path):
    """Trains for two epochs of four batches, unless options change that; writes to the folder ``name``."""

    def run_train(*extra: str, name: str = "run") -> dict:
        return train.main(train.get_parser().parse_args([*options_for(photos, tmp_path / name), *extra]))

    return run_train


FILES = ["checkpoint.pth", "confusion.png", "curves.png", "log.csv", "model.pth", "train.log"]


def options_for(photos: Path, output_dir: Path) -> list[str]:
    options = ["--dataset", "imagefolder", "--data-path", str(photos), "--output-dir", str(output_dir)]
    return [*options, "--model", "resnet18_tiny", "--image-size", "32", "--batch-size", "4", "--epochs", "2"]


def assert_same_weights(one: dict, other: dict) -> None:
    assert one["model"].keys() == other["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2"])
def test_training_writes_its_files(run, photos, tmp_path, model, capsys):
    result = run("--model", model, "--epochs", "1")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    assert [entry["epoch"] for entry in result["history"]] == [1]
    command, versions, epoch, end = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert command.startswith(f"$ python references/classification/train.py --model {model} --dataset imagefolder")
    assert torch.__version__ in versions
    assert epoch.startswith("epoch 1/1: loss")
    assert end.startswith(f"{model}: test accuracy")
    with open(tmp_path / "run" / "log.csv", newline="") as table:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(table)]
    assert rows == result["history"]
    model_file = load(tmp_path / "run" / "model.pth")
    assert (model_file["model_name"], model_file["num_classes"], model_file["classes"]) == (model, 2, ["blue", "red"])
    assert str(tmp_path) not in str({key: value for key, value in model_file.items() if key != "model"})
    assert model_file["model_arguments"] == {"width_mult": 1.0, "depth_mult": 1.0}

    # torchvision's model has the same accuracy with these weights.
    peer = getattr(torchvision.models, model)(num_classes=2).eval()
    peer.load_state_dict(model_file["model"])
    _, test, _ = load_datasets("imagefolder", photos, 32)
    with torch.inference_mode():
        correct = [peer(image[None]).argmax().item() == label for image, label in test]
    assert result["test_accuracy"] == model_file["test_accuracy"] == sum(correct) / len(correct)
    assert f"{model}: test accuracy {result['test_accuracy']:.2%}" in capsys.readouterr().out


def test_accuracy_after_three_epochs(tmp_path):
    argv = ["--model", "resnet18_tiny", "--image-size", "32", "--epochs", "3", "--output-dir", str(tmp_path)]
    result = train.main(train.get_parser().parse_args(argv))
    assert result["test_accuracy"] > 0.8


@forks
@pytest.mark.parametrize("workers", ["0", "2"])
def test_repeated_run_is_bit_equal(run, tmp_path, workers):
    first = run("--model", "mobilenet_v2_tiny", "--workers", workers, name="first")
    second = run("--model", "mobilenet_v2_tiny", "--workers", workers, name="second")
    assert first == second
    one = load(tmp_path / "first" / "checkpoint.pth")
    assert_same_weights(one, load(tmp_path / "second" / "checkpoint.pth"))
    run("--model", "mobilenet_v2_tiny", "--seed", "1", name="third")
    other = load(tmp_path / "third" / "checkpoint.pth")
    assert not torch.equal(one["model"]["classifier.1.weight"], other["model"]["classifier.1.weight"])


def test_resuming_a_finished_run(run, tmp_path):
    result = run()
    model_file = load(tmp_path / "run" / "model.pth")
    (tmp_path / "run" / "model.pth").unlink()
    assert run("--resume", str(tmp_path / "run" / "checkpoint.pth")) == result
    assert_same_weights(load(tmp_path / "run" / "model.pth"), model_file)


def test_test_only(run, tmp_path, capsys):
    expected = run()
    for file in ("checkpoint.pth", "model.pth"):
        result = run("--test-only", "--weights", str(tmp_path / "run" / file), name="unused")
        assert result["test_accuracy"] == expected["test_accuracy"]
    assert not (tmp_path / "unused").exists()


def test_initial_weights(run, tmp_path):
    run()
    run("--weights", str(tmp_path / "run" / "model.pth"), "--lr", "1e-12", "--weight-decay", "0", name="next")
    before, after = load(tmp_path / "run" / "model.pth")["model"], load(tmp_path / "next" / "model.pth")["model"]
    torch.testing.assert_close(after["fc.weight"], before["fc.weight"])


def test_skipped_batches_are_logged(run, capsys):
    run("--batch-size", "5", "--epochs", "1")  # 16 images
    assert "batches of one image skipped: 1" in capsys.readouterr().out


def test_unreadable_images_stop_training_or_are_skipped(run, photos, capsys):
    damaged = photos / "blue" / "blue3.png"
    damaged.write_text("not an image")
    with pytest.raises(ValueError, match="cannot be read as an image") as info:
        run()
    assert str(damaged) in str(info.value)
    result = run("--on-bad-image", "skip")
    out, err = capsys.readouterr()
    assert len(result["history"]) == 2
    assert err.count(f"skipped {damaged}") == 1
    last_epoch, final = out.splitlines()[-2:]
    assert last_epoch.startswith("epoch 2/2")
    assert last_epoch.endswith(", unreadable images skipped: 1")
    assert final.endswith(", unreadable images skipped: 1")


def test_nan_loss_keeps_the_last_checkpoint(run, tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 2") as info:
        run("--model", "poisoned")
    assert len(re.findall(r"/(?:blue|red)\d+\.png", str(info.value))) == 4  # the images of the batch
    checkpoint = load(tmp_path / "run" / "checkpoint.pth")
    assert len(checkpoint["history"]) == 1
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_infinite_weights_are_not_saved(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"(the (test )?loss|a weight) is (nan|inf|not finite)"):
        run("--lr", "1e30", "--batch-size", "16", "--epochs", "1")  # one step
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet19"], "model must be one of .*resnet18.*got 'resnet19'"),
        (["--dataset", "mnist"], "dataset must be one of digits, .*; got 'mnist'"),
        (["--data-path", "nowhere"], "data_path nowhere does not exist"),
        (["--image-size", "4"], "image_size must be at least 8, got 4"),
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--batch-size", "1"], "batch_size must be at least 2.*got 1"),
        (["--lr", "nan"], "lr must be positive and finite; got nan"),
        (["--test-only"], "test_only needs the weights"),
        (["--weights", "a", "--resume", "b"], "resume and weights cannot be combined"),
        (["--weights", "nowhere.pth"], r"No such file.*nowhere\.pth"),
        (["--width-mult", "0"], "width_mult must be positive and finite; got 0.0"),
        (["--mixup-alpha", "-1"], "mixup_alpha must be at least 0 and finite; got -1.0"),
        (["--random-erase", "2"], r"random_erase must be in \[0, 1\]; got 2.0"),
        (["--clip-grad-norm", "0"], "clip_grad_norm must be positive and finite; got 0.0"),
        (["--lr-warmup-epochs", "2"], "lr_warmup_epochs must be below epochs, 2; got 2"),
        (["--model-ema-decay", "1"], r"model_ema_decay must be in \[0, 1\); got 1.0"),
        (["--device", "nothing"], "device must be known to torch; got 'nothing'"),
        (["--device", "meta:3"], "device must be able to compute; got 'meta:3'"),
        (["--fsdp"], "fsdp needs the processes of torchrun"),
    ],
)
def test_bad_options(run, tmp_path, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(*options)
    assert not (tmp_path / "run").exists()


def test_output_dir_inside_a_file(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output_dir .*file/run cannot be written to"):
        run("--output-dir", str(tmp_path / "file" / "run"))


def test_checkpoints_of_other_runs(run, photos, draw, tmp_path):
    run()
    checkpoint, weights = str(tmp_path / "run" / "checkpoint.pth"), str(tmp_path / "run" / "model.pth")
    for option in ("--resume", "--weights"):
        with pytest.raises(ValueError, match="of resnet18_tiny with 2 classes, not of mobilenet_v2_tiny with 2"):
            run(option, checkpoint, "--model", "mobilenet_v2_tiny")
    with pytest.raises(ValueError, match=r"model\.pth holds only weights"):
        run("--resume", weights)
    with pytest.raises(ValueError, match=r"checkpoint\.pth was made with epochs 2, not 3"):
        run("--resume", checkpoint, "--epochs", "3")
    draw(photos / "red" / "more", 5)
    with pytest.raises(ValueError, match=r"checkpoint\.pth was made with training images 16, not 20"):
        run("--resume", checkpoint)
    shutil.rmtree(photos / "red" / "more")
    (photos / "red").rename(photos / "green")
    for options in (["--resume", checkpoint], ["--weights", weights, "--test-only"]):
        with pytest.raises(ValueError, match=r"was made with classes \['blue', 'red'\], not \['blue', 'green'\]"):
            run(*options)


def test_user_error_exits_with_status_2(scripts, tmp_path, interpreter):
    options = ["--dataset", "imagefolder", "--data-path", "nowhere"]
    result = interpreter.run(scripts / "train.py", *options, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: data_path nowhere does not exist\n"
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_compiled_model_trains_equally(run, tmp_path):
    """Steps are negligibly small, and the checkpoint has the same keys.

    The model has no dropout, for which compiled code uses other random numbers.
    """
    options = ["--model", "resnet18_tiny", "--lr", "1e-12", "--epochs", "1"]
    plain, compiled = (run(*options, *extra, name=str(len(extra))) for extra in ([], ["--compile"]))
    assert compiled["history"][0]["train_loss"] == pytest.approx(plain["history"][0]["train_loss"], rel=1e-4)
    assert load(tmp_path / "1" / "model.pth")["model"].keys() == load(tmp_path / "0" / "model.pth")["model"].keys()
