"""Runs that are killed, cut, starved and fed damaged files, and go on to what they would have been without."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import checkpoints
import pytest
import torch
import train
from torch import nn
from utils import run_as_script

from ._support import draw_pictures

if not hasattr(os, "fork"):
    pytest.skip("runs are forked, and killed, as POSIX does", allow_module_level=True)

# All that has a state: statistics, dropout, mixing, augmentation, an average, a scaler and a schedule.
FLAGS = ["--model", "mobilenet_v2", "--width-mult", "0.1", "--depth-mult", "0.3", "--dataset", "imagefolder"]
FLAGS += ["--image-size", "16", "--batch-size", "4", "--epochs", "2", "--lr", "0.01", "--mixup-alpha", "0.2"]
FLAGS += ["--auto-augment", "ta_wide", "--model-ema", "--model-ema-steps", "3", "--amp", "float16"]
IMAGES = 30  # of each of two classes, of which 48 in all are for training, in 12 batches


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(found: object, expected: object, where: str = "checkpoint") -> None:
    """All that two checkpoints hold, tensors to the bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{where}[{index}]")
    else:
        assert found == expected, where


def assert_same_end(found: Path, expected: Path) -> None:
    for file in ("checkpoint.pth", "model.pth"):
        assert_same(saved(found / file), saved(expected / file))
    assert (found / "log.csv").read_text() == (expected / "log.csv").read_text()
    assert not list(found.glob(".*"))  # what was half written


class Runs:
    """Runs of the same, each in a folder of its own; ``whole`` is one that nothing happened to."""

    def __init__(self, host, folder: Path) -> None:
        self.host, self.folder, self.seconds = host, folder, 0.0
        assert self.one("whole") == 0
        self.whole = folder / "whole"
        # Two checkpoints of a run that was cut in its second epoch.
        assert self.one("cut", "--checkpoint-steps", "5", dies_at=("replace", 11)) == -signal.SIGKILL

    def arguments(self, name: str, *flags: str) -> list[str]:
        return [*FLAGS, "--data-path", str(self.folder / "photos"), "--output-dir", str(self.folder / name), *flags]

    def one(self, name: str, *flags: str, **how: object) -> int:
        wanted = {"arguments": self.arguments(name, *flags), "output": str(self.folder / f"{name}.txt"), **how}
        [(status, self.seconds)] = self.host.run(wanted)
        return status

    def cut(self, name: str) -> Path:
        """The last checkpoint of a copy of the run that was cut."""
        shutil.copytree(self.folder / "cut", self.folder / name)
        path = self.folder / name / "checkpoint.pth"
        assert path.exists()
        assert checkpoints.before(path).exists()
        return path

    def printed(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text()


@pytest.fixture(scope="module")
def runs(host, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("blue", "red"):
        draw_pictures(folder / "photos" / name, IMAGES)
    return Runs(host, folder)


def test_a_run_that_is_killed_at_ten_random_moments_ends_as_one_that_is_not(runs):
    flags = ["--resume", "auto", "--checkpoint-steps", "1"]
    assert runs.one("timed", *flags) == 0
    seconds, moments = runs.seconds, random.Random(0)
    for _ in range(10):
        status = runs.one("killed", *flags, seconds=moments.uniform(0.05, 0.3) * seconds)
        assert status == -signal.SIGKILL
    assert runs.one("killed", *flags) == 0
    assert_same_end(runs.folder / "killed", runs.whole)
    assert runs.printed("killed").count("goes on in epoch") >= 3


# Names of os's functions that write a checkpoint, and which call is the last of the process. Three calls of fsync are a
# checkpoint and log.csv's; the sixth checkpoint is in the second epoch.
@pytest.mark.parametrize("dies_at", [("fsync", 1), ("replace", 1), ("fsync", 6), ("replace", 9), ("replace", 10)])
def test_a_run_that_is_killed_while_it_writes_ends_as_one_that_is_not(runs, dies_at):
    name = "_".join(map(str, dies_at))
    flags = ["--resume", "auto", "--checkpoint-steps", "5"]
    assert runs.one(name, *flags, dies_at=dies_at) == -signal.SIGKILL
    assert list((runs.folder / name).glob(".*")) or dies_at[0] == "replace"
    assert runs.one(name, *flags) == 0
    assert_same_end(runs.folder / name, runs.whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(runs, number, status):
    name = number.name
    once = str(runs.folder / name / "checkpoint.pth")
    assert runs.one(name, "--checkpoint-steps", "2", signal=int(number), once=once) == status
    *_, line, command = runs.printed(name).splitlines()
    checkpoint = saved(runs.folder / name / "checkpoint.pth")
    assert line == f"stopped in epoch {checkpoint['epoch']}, after {checkpoint['step']} of its batches; to go on:"
    assert command.startswith("python references/classification/train.py")
    arguments = command.split()[2:]
    assert arguments[arguments.index("--resume") + 1] == "auto"
    [(status, _)] = runs.host.run({"arguments": arguments, "output": str(runs.folder / f"{name}.txt")})
    assert status == 0
    assert_same_end(runs.folder / name, runs.whole)


@pytest.mark.slow
def test_a_compiled_run_that_is_killed_ends_as_one_that_is_not(runs):
    """Its last batches are smaller, so that there are graphs of two sizes before the kill, and one after."""
    flags = [
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
    assert runs.one("compiled", *flags) == 0
    assert runs.one("cut_compiled", *flags, dies_at=("replace", 18)) == -signal.SIGKILL
    assert runs.one("cut_compiled", *flags, "--resume", "auto") == 0
    assert "goes on in epoch 2" in runs.printed("cut_compiled")
    assert_same_end(runs.folder / "cut_compiled", runs.folder / "compiled")


def incomplete(path: Path) -> None:
    checkpoint = saved(path)
    torch.save({key: value for key, value in checkpoint.items() if key not in ("sums", "settings")}, path)


def foreign(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def of_another_model(path: Path) -> None:
    torch.save({**saved(path), "model_name": "resnet18"}, path)


def of_another_run(path: Path) -> None:
    checkpoint = saved(path)
    checkpoint["settings"]["lr"] = 0.5
    torch.save(checkpoint, path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "is not a checkpoint, or a damaged one"),
        (Path.unlink, None),
        (foreign, "is not a checkpoint of these scripts"),
        (incomplete, "is not a checkpoint of these scripts as they are: it lacks settings, sums"),
        (of_another_model, "is a checkpoint of resnet18 with 2 classes, not of mobilenet_v2 with 2"),
        (of_another_run, "was made with lr 0.5, not 0.01"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named_and_the_one_before_is(runs, damage, message):
    name = damage.__name__
    path = runs.cut(name)
    damage(path)
    assert runs.one(name, "--resume", "auto") == 0
    printed = runs.printed(name)
    if message is not None:
        assert f"warning: {path} {message}" in printed
        assert f"{checkpoints.before(path)}, the one before, is used" in printed
    assert_same_end(runs.folder / name, runs.whole)


def test_a_kill_leaves_the_good_checkpoint_where_the_last_was_bad(runs):
    """Between the renames of the first checkpoint after it."""
    path = runs.cut("bad_and_killed")
    truncated(path)
    flags = ["--resume", "auto", "--checkpoint-steps", "5"]
    assert runs.one("bad_and_killed", *flags, dies_at=("replace", 2)) == -signal.SIGKILL
    assert runs.one("bad_and_killed", *flags) == 0
    assert_same_end(runs.folder / "bad_and_killed", runs.whole)


def test_the_last_good_checkpoint_is_one_of_this_run(runs):
    """Neither a damaged one, nor what an earlier run has left."""
    path = runs.cut("named")
    truncated(path)
    assert runs.one("named", "--resume", "auto", largest_file=50_000) == 2
    assert runs.printed("named").endswith(f"; {checkpoints.before(path)} is the last good checkpoint\n")
    assert runs.one("named", largest_file=50_000) == 2
    assert runs.printed("named").endswith(f"{path} cannot be written: File too large\n")


def test_a_folder_with_any_name(runs):
    name = 'it\'s "so" $HOME ü漢 \udcff #1'
    assert runs.one(name, "--epochs", "1") == 0
    command, *_ = runs.printed(name).splitlines()
    log = (runs.folder / name / "train.log").read_text(encoding="utf-8")
    assert log.splitlines()[0] == command


def test_no_run_begins_anew_over_checkpoints_that_cannot_be_used(runs):
    path = runs.cut("both")
    for file in (path, checkpoints.before(path)):
        truncated(file)
    before = [file.read_bytes() for file in (path, checkpoints.before(path))]
    assert runs.one("both", "--resume", "auto") == 2
    assert "error: no checkpoint in" in runs.printed("both")
    assert [file.read_bytes() for file in (path, checkpoints.before(path))] == before
    assert runs.one("both", "--resume", str(path)) == 2
    assert f"error: {path} is not a checkpoint, or a damaged one" in runs.printed("both")


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(runs):
    path = runs.cut("full")
    before = path.read_bytes()
    assert runs.one("full", "--resume", "auto", largest_file=50_000) == 2
    error = runs.printed("full").splitlines()[-1]
    assert error == f"error: {path} cannot be written: File too large; {path} is the last good checkpoint"
    assert path.read_bytes() == before
    assert runs.one("full", "--resume", "auto") == 0
    assert_same_end(runs.folder / "full", runs.whole)


def test_a_second_ctrl_c_does_not_wait(monkeypatch, tmp_path, capsys):
    """For the batch, or the test, in which the first one came."""

    def press_twice(*args: object, **options: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train, "evaluate", press_twice)
    arguments = train.get_parser().parse_args(["--image-size", "8", "--output-dir", str(tmp_path), "--epochs", "1"])
    with pytest.raises(SystemExit) as caught:
        run_as_script(train.main, arguments)
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
