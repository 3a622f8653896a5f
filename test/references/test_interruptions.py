"""Interrupted, truncated and corrupted runs: resumed, they end like a run without interruption."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import common.training.run
import pytest
import torch
import train
from common.cli import run_as_script
from common.runs.checkpoints import previous
from torch import nn

from ._support import draw_images, load

if not hasattr(os, "fork"):
    pytest.skip("needs POSIX to fork and kill runs", allow_module_level=True)

# Everything with a state: statistics, dropout, mixing, augmentation, an average, a scaler and a schedule.
OPTIONS = ["--model", "mobilenet_v2", "--width-mult", "0.1", "--depth-mult", "0.3", "--dataset", "imagefolder"]
OPTIONS += ["--image-size", "16", "--batch-size", "4", "--epochs", "2", "--lr", "0.01", "--mixup-alpha", "0.2"]
OPTIONS += ["--auto-augment", "ta_wide", "--model-ema", "--model-ema-steps", "3", "--amp", "float16"]
OPTIONS += ["--channels-last", "--use-deterministic-algorithms"]
IMAGES = 30  # per class; 48 of both classes are for training, in 12 batches


def assert_same(actual: object, expected: object, key_path: str = "checkpoint") -> None:
    """Compares all values of two checkpoints, tensors to the bit."""
    assert type(actual) is type(expected), key_path
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), key_path
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), key_path
        for key, value in expected.items():
            assert_same(actual[key], value, f"{key_path}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), key_path
        for index, value in enumerate(expected):
            assert_same(actual[index], value, f"{key_path}[{index}]")
    else:
        assert actual == expected, key_path


def assert_same_results(folder: Path, expected: Path) -> None:
    for file in ("checkpoint.pth", "model.pth"):
        assert_same(load(folder / file), load(expected / file))
    assert (folder / "log.csv").read_text() == (expected / "log.csv").read_text()
    assert not list(folder.glob(".*"))  # no temporary files


class Runs:
    """Runs with equal settings, each in its own folder; ``complete`` is one without interruption."""

    def __init__(self, host, folder: Path, device: str) -> None:
        self.host, self.folder, self.device, self.seconds = host, folder, device, 0.0
        assert self.run("complete") == 0
        self.complete = folder / "complete"
        # Leaves two checkpoints of a run that was killed in its second epoch.
        assert self.run("killed_in_epoch_2", "--checkpoint-steps", "5", dies_at=("replace", 11)) == -signal.SIGKILL

    def arguments(self, name: str, *extra: str) -> list[str]:
        files = ["--data-path", str(self.folder / "photos"), "--output-dir", str(self.folder / name)]
        return [*OPTIONS, "--device", self.device, *files, *extra]

    def run(self, name: str, *extra: str, **options: object) -> int:
        run = {"arguments": self.arguments(name, *extra), "output": str(self.folder / f"{name}.txt"), **options}
        [(status, self.seconds)] = self.host.run(run)
        return status

    def copy_killed(self, name: str) -> Path:
        """Copies the run that was killed, and returns its last checkpoint."""
        shutil.copytree(self.folder / "killed_in_epoch_2", self.folder / name)
        path = self.folder / name / "checkpoint.pth"
        assert path.exists()
        assert previous(path).exists()
        return path

    def printed(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text()


@pytest.fixture(scope="module")
def runs(host, tmp_path_factory, request) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("blue", "red"):
        draw_images(folder / "photos" / name, IMAGES)
    return Runs(host, folder, request.config.getoption("--device"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 10])
def test_kills_at_random_times(runs, kills):
    name = f"killed_{kills}"
    options = ["--resume", "auto", "--checkpoint-steps", "1"]
    assert runs.run("timed", *options) == 0
    seconds, moments = runs.seconds, random.Random(0)
    for _ in range(kills):
        status = runs.run(name, *options, seconds=moments.uniform(0.05, 0.3) * seconds)
        assert status == -signal.SIGKILL
    assert runs.run(name, *options) == 0
    assert_same_results(runs.folder / name, runs.complete)
    assert runs.printed(name).count("resuming in epoch") >= kills // 3


# Functions of os that write a checkpoint, and the number of the call at which the process is killed. A checkpoint and
# log.csv take three calls of fsync; the sixth checkpoint is in the second epoch.
@pytest.mark.parametrize("dies_at", [("fsync", 1), ("replace", 1), ("fsync", 6), ("replace", 9), ("replace", 10)])
def test_kill_while_writing(runs, dies_at):
    name = "_".join(map(str, dies_at))
    options = ["--resume", "auto", "--checkpoint-steps", "5"]
    assert runs.run(name, *options, dies_at=dies_at) == -signal.SIGKILL
    assert list((runs.folder / name).glob(".*")) or dies_at[0] == "replace"
    assert runs.run(name, *options) == 0
    assert_same_results(runs.folder / name, runs.complete)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_saves_and_prints_how_to_resume(runs, signum, status):
    name = signum.name
    once = str(runs.folder / name / "checkpoint.pth")
    assert runs.run(name, "--checkpoint-steps", "2", signal=int(signum), once=once) == status
    *_, line, command = runs.printed(name).splitlines()
    checkpoint = load(runs.folder / name / "checkpoint.pth")
    assert line == f"stopped in epoch {checkpoint['epoch']} after {checkpoint['step']} batches; resume with:"
    assert command.startswith("python references/classification/train.py")
    arguments = command.split()[2:]
    assert arguments[arguments.index("--resume") + 1] == "auto"
    [(status, _)] = runs.host.run({"arguments": arguments, "output": str(runs.folder / f"{name}.txt")})
    assert status == 0
    assert_same_results(runs.folder / name, runs.complete)


@pytest.mark.slow
def test_kill_of_a_compiled_run(runs):
    """The last batch is smaller, so there are graphs of two sizes before the kill and of one size after it."""
    options = [
        "--model",
        "resnet18",
        "--compile",
        "--batch-size",
        "10",
        "--model-ema-steps",
        "1",
        "--checkpoint-steps",
        "1",
    ]
    assert runs.run("compiled", *options) == 0
    assert runs.run("killed_compiled", *options, dies_at=("replace", 18)) == -signal.SIGKILL
    assert runs.run("killed_compiled", *options, "--resume", "auto") == 0
    assert "resuming in epoch 2" in runs.printed("killed_compiled")
    assert_same_results(runs.folder / "killed_compiled", runs.folder / "compiled")


def incomplete(path: Path) -> None:
    checkpoint = load(path)
    torch.save({key: value for key, value in checkpoint.items() if key not in ("sums", "settings")}, path)


def foreign(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def of_another_model(path: Path) -> None:
    torch.save({**load(path), "model_name": "resnet18"}, path)


def of_another_run(path: Path) -> None:
    checkpoint = load(path)
    checkpoint["settings"]["lr"] = 0.5
    torch.save(checkpoint, path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "is damaged or not a checkpoint"),
        (Path.unlink, None),
        (foreign, "is not a checkpoint of these scripts"),
        (incomplete, "is from another version of these scripts: it lacks settings, sums"),
        (of_another_model, "is a checkpoint of resnet18 with 2 classes, not of mobilenet_v2 with 2"),
        (of_another_run, "was made with lr 0.5, not 0.01"),
    ],
)
def test_unusable_checkpoint_is_named_and_the_previous_one_used(runs, damage, message):
    name = damage.__name__
    path = runs.copy_killed(name)
    damage(path)
    assert runs.run(name, "--resume", "auto") == 0
    printed = runs.printed(name)
    if message is not None:
        assert f"warning: {path} {message}" in printed
        assert f"using {previous(path)}, the previous checkpoint" in printed
    assert_same_results(runs.folder / name, runs.complete)


def test_kill_keeps_the_good_checkpoint_if_the_last_is_bad(runs):
    """The kill comes between the two renames of the next checkpoint."""
    path = runs.copy_killed("bad_and_killed")
    truncated(path)
    options = ["--resume", "auto", "--checkpoint-steps", "5"]
    assert runs.run("bad_and_killed", *options, dies_at=("replace", 2)) == -signal.SIGKILL
    assert runs.run("bad_and_killed", *options) == 0
    assert_same_results(runs.folder / "bad_and_killed", runs.complete)


def test_last_good_checkpoint_in_errors(runs):
    """It is neither a damaged one nor one of an earlier run."""
    path = runs.copy_killed("named")
    truncated(path)
    assert runs.run("named", "--resume", "auto", largest_file=50_000) == 2
    assert runs.printed("named").endswith(f"; {previous(path)} is the last good checkpoint\n")
    assert runs.run("named", largest_file=50_000) == 2
    assert runs.printed("named").endswith(f"{path} cannot be written: File too large\n")


def test_folder_names_with_special_characters(runs):
    name = 'it\'s "so" $HOME ü漢 \udcff #1'
    assert runs.run(name, "--epochs", "1") == 0
    command, *_ = runs.printed(name).splitlines()
    log = (runs.folder / name / "train.log").read_text(encoding="utf-8")
    assert log.splitlines()[0] == command


def test_unusable_checkpoints_are_not_overwritten(runs):
    path = runs.copy_killed("both")
    for file in (path, previous(path)):
        truncated(file)
    contents = [file.read_bytes() for file in (path, previous(path))]
    assert runs.run("both", "--resume", "auto") == 2
    assert "error: no checkpoint in" in runs.printed("both")
    assert [file.read_bytes() for file in (path, previous(path))] == contents
    assert runs.run("both", "--resume", str(path)) == 2
    assert f"error: {path} is damaged or not a checkpoint" in runs.printed("both")


def test_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(runs):
    path = runs.copy_killed("full")
    content = path.read_bytes()
    assert runs.run("full", "--resume", "auto", largest_file=50_000) == 2
    error = runs.printed("full").splitlines()[-1]
    assert error == f"error: {path} cannot be written: File too large; {path} is the last good checkpoint"
    assert path.read_bytes() == content
    assert runs.run("full", "--resume", "auto") == 0
    assert_same_results(runs.folder / "full", runs.complete)


def test_second_ctrl_c_interrupts_at_once(monkeypatch, tmp_path, capsys):
    """It does not wait for the end of the batch or test that was running at the first."""

    def press_twice(*args: object, **options: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(common.training.run, "evaluate", press_twice)
    options = ["--image-size", "8", "--width-mult", "0.25", "--epochs", "1", "--output-dir", str(tmp_path)]
    arguments = train.get_parser().parse_args(options)
    with pytest.raises(SystemExit) as info:
        run_as_script(train.main, arguments)
    assert info.value.code == 130
    assert signal.getsignal(signal.SIGINT) is handler
