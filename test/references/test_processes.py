"""Two processes against one with the same batches, restarted workers, sharded parameters."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import models
import pytest
import torch
from data import load_datasets
from evaluation import evaluate
from loading import ImageLoader

from ._support import draw_pictures

if not hasattr(os, "fork"):
    pytest.skip("runs are forked, and killed, as POSIX does", allow_module_level=True)

# Of each of three classes: the last batch, of 5 images in training and 7 in testing, is shared unequally.
TRAINING, TESTING = 15, 5
# Without what a process draws for itself, such as dropout.
FLAGS = ["--dataset", "imagefolder", "--image-size", "32", "--epochs", "2", "--lr", "0.01", "--width-mult", "0.25"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for split, count in (("train", TRAINING), ("val", TESTING)):
        for name in ("blue", "red"):
            draw_pictures(folder / "photos" / split / name, count)
    draw_pictures(folder / "photos" / "train" / "green", TRAINING)
    draw_pictures(folder / "photos" / "val" / "green", TESTING)
    return folder


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def arguments(folder: Path, name: str, *flags: str) -> list[str]:
    return [*FLAGS, "--data-path", str(folder / "photos"), "--output-dir", str(folder / name), *flags]


def one(host, folder: Path, name: str, *flags: str, **how: object) -> dict:
    """What a run in one process leaves, of batches of eight."""
    wanted = {"arguments": arguments(folder, name, "--batch-size", "8", *flags), "output": str(folder / f"{name}.txt")}
    [(status, _)] = host.run({**wanted, **how})
    assert status == 0, (folder / f"{name}.txt").read_text()
    return saved(folder / name / "checkpoint.pth")


def two(host, folder: Path, name: str, *flags: str, **how: object) -> dict:
    """What a run in two processes leaves, of batches of four each."""
    words = arguments(folder, name, "--batch-size", "4", *flags)
    assert together(host, folder, name, words, words, **how) == [0, 0], printed(folder, name)
    return saved(folder / name / "checkpoint.pth")


def printed(folder: Path, name: str) -> str:
    """What the first process of :func:`together` printed, then what the second did."""
    return "".join((folder / f"{name}.txt{rank}").read_text() for rank in (0, 1))


def together(host, folder: Path, name: str, *words: list[str], **how: object) -> list[int]:
    """How two processes end that have these arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = []
    for rank in (0, 1):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        output = str(folder / f"{name}.txt{rank}")
        runs.append({"arguments": words[rank], "output": output, "environment": environment, **how})
    return [status for status, _ in host.run(*runs)]


def assert_same_curves(found: dict, expected: dict, tolerance: float) -> None:
    assert len(found["history"]) == len(expected["history"]) == 2
    for here, there in zip(found["history"], expected["history"], strict=True):
        assert here.keys() == there.keys()
        for name, value in there.items():
            assert here[name] == pytest.approx(value, rel=tolerance), name
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=tolerance, atol=tolerance)


def test_two_processes_are_one_with_the_same_batches(host, folder):
    """In float64, where rounding cannot grow: statistics, gradients, the average of the weights, the last batch."""
    flags = ["--model", "resnet18", "--sync-bn", "--model-ema", "--model-ema-steps", "1", "--clip-grad-norm", "1"]
    flags += ["--model-ema-decay", "0.9"]
    expected = one(host, folder, "one", *flags, in_double=True)
    found = two(host, folder, "two", *flags, in_double=True)
    assert_same_curves(found, expected, 1e-7)  # the loss of the test is a float32
    for name, value in expected["model_ema"].items():
        torch.testing.assert_close(found["model_ema"][name], value, rtol=1e-9, atol=1e-9)
    assert found["averaged"] == expected["averaged"] == 2 * 6


def test_two_processes_are_one_in_float32(host, folder):
    flags = ["--model", "resnet50_gn_ws", "--depth-mult", "0.25"]
    assert_same_curves(two(host, folder, "two32", *flags), one(host, folder, "one32", *flags), 1e-4)


def test_the_test_counts_every_image_once(host, folder):
    """Of 15, which two processes cannot share equally."""
    found = two(host, folder, "counted", "--model", "resnet18", "--epochs", "1")
    accuracy = found["history"][0]["test_accuracy"] * 3 * TESTING
    assert accuracy == pytest.approx(round(accuracy))
    alone = models.build_model("resnet18", 3, width_mult=0.25)  # with the statistics of the first process
    alone.load_state_dict(found["model"])
    _, test_set, _ = load_datasets("imagefolder", folder / "photos", 32)
    tested = evaluate(alone, ImageLoader(test_set, 4), 3, label_smoothing=0.1)
    assert found["history"][0]["test_loss"] == pytest.approx(tested.loss, rel=1e-5)
    model = one(host, folder, "counted_by_one", "--model", "resnet18", "--epochs", "1")
    assert model["settings"] == found["settings"]
    command = ["--test-only", "--weights", str(folder / "counted" / "model.pth"), "--model", "resnet18"]
    output = folder / "tested.txt"
    [(status, _)] = host.run({"arguments": arguments(folder, "unused", *command), "output": str(output)})
    assert status == 0
    assert f"test accuracy {found['history'][0]['test_accuracy']:.2%}" in output.read_text()


def test_unreadable_images_of_all_processes_are_counted(host, folder):
    """The last test image is the second process's."""
    photos = shutil.copytree(folder / "photos", folder / "damaged")
    sorted((photos / "val" / "red").iterdir())[-1].write_text("no picture")
    two(host, folder, "skipping", "--model", "resnet18", "--epochs", "1")
    words = ["--test-only", "--weights", str(folder / "skipping" / "model.pth"), "--model", "resnet18"]
    words = arguments(folder, "unused", *words, "--on-bad-image", "skip", "--data-path", str(photos))
    assert together(host, folder, "skipped", words, words) == [0, 0]
    assert printed(folder, "skipped").count(", unreadable images skipped: 1") == 1


def test_a_batch_of_which_one_process_can_read_nothing_is_left_out_by_both(host, folder):
    photos = shutil.copytree(folder / "photos", folder / "half")
    train_set, _, _ = load_datasets("imagefolder", photos, 32)
    loader = ImageLoader(train_set, 4, shuffle=True, rank=1, processes=2)
    for name in next(loader.batches(1)).names:
        Path(name).write_text("no picture")
    words = ["--model", "resnet18", "--epochs", "1", "--on-bad-image", "skip", "--data-path", str(photos)]
    words = arguments(folder, "halved", "--batch-size", "4", *words)
    assert together(host, folder, "halved", words, words) == [0, 0], printed(folder, "halved")
    assert "skipped: 1, unreadable images skipped: 4" in printed(folder, "halved")


def test_processes_that_find_other_checkpoints_do_not_go_on(host, folder):
    """As where each machine has a disk of its own."""
    two(host, folder, "here", "--model", "resnet18", "--epochs", "1")
    words = [arguments(folder, name, "--batch-size", "4", "--model", "resnet18") for name in ("here", "elsewhere")]
    words = [[*each, "--epochs", "1", "--resume", "auto"] for each in words]
    assert together(host, folder, "apart", *words) == [2, 2]
    assert printed(folder, "apart").count("error: all processes must find the same checkpoint") == 2


@pytest.mark.slow
def test_sharded_parameters_train_as_others(host, folder):
    flags = ["--model", "resnet18", "--model-ema", "--model-ema-steps", "1", "--model-ema-decay", "0.9"]
    flags += ["--clip-grad-norm", "1"]
    expected = two(host, folder, "ddp", *flags, "--sync-bn", in_double=True)
    found = two(host, folder, "fsdp", *flags, "--sync-bn", "--fsdp", in_double=True)
    assert_same_curves(found, expected, 1e-7)
    again = two(host, folder, "fsdp", *flags, "--sync-bn", "--fsdp", "--resume", "auto", in_double=True)
    assert again["history"] == found["history"]
    # A checkpoint is whole: one process takes it up.
    command = ["--test-only", "--weights", str(folder / "fsdp" / "model.pth"), "--model", "resnet18"]
    [(status, _)] = host.run({"arguments": arguments(folder, "unused", *command), "output": str(folder / "whole.txt")})
    assert status == 0


def torchrun(folder: Path, name: str, scripts: Path, *flags: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", "2", str(scripts / "train.py"), *arguments(folder, name, *flags)]
    environment = {**os.environ, "PYTHONPATH": str(scripts.parents[1]), "OMP_NUM_THREADS": "1"}
    with open(folder / f"{name}.txt", "w") as output:
        return subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)


def workers(process: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "train.py" in Path(f"/proc/{child}/cmdline").read_text()]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, "it ended before"
        time.sleep(0.01)


ELASTIC = ["--model", "mobilenet_v2", "--batch-size", "4", "--epochs", "3"]
ELASTIC += ["--resume", "auto", "--checkpoint-steps", "1"]


@pytest.fixture(scope="module")
def undisturbed(folder, scripts) -> dict:
    with torchrun(folder, "undisturbed", scripts, *ELASTIC) as process:
        pass
    assert process.returncode == 0, (folder / "undisturbed.txt").read_text()
    return saved(folder / "undisturbed" / "checkpoint.pth")


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_worker_that_ends_is_restarted_and_goes_on(folder, scripts, undisturbed, rank, number):
    """To the weights of a run in which none did. SIGTERM has both save before the same batch."""
    name = f"{number.name}{rank}"
    with torchrun(folder, name, scripts, *ELASTIC) as process:
        wait_for(folder / name / "checkpoint.pth", process)
        os.kill(workers(process)[rank], number)
    printed = (folder / f"{name}.txt").read_text()
    assert process.returncode == 0, printed
    assert "goes on in epoch" in printed
    assert ("stopped in epoch" in printed) == (number == signal.SIGTERM)
    found = saved(folder / name / "checkpoint.pth")
    assert found["history"] == undisturbed["history"]
    for key, value in undisturbed["model"].items():
        assert torch.equal(found["model"][key], value), key
