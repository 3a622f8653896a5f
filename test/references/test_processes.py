"""Training in two processes: equal to one process with the same batches, restarts of workers, sharded parameters."""

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
from common.data.datasets import load_datasets
from common.data.loading import ImageLoader
from common.training.evaluation import evaluate

from ._support import draw_images, load

if not hasattr(os, "fork"):
    pytest.skip("needs POSIX to fork and kill runs", allow_module_level=True)

# Images of each of three classes. The last batch, of 5 images in training and 7 in testing, cannot be shared equally.
TRAIN_IMAGES, TEST_IMAGES = 15, 5
# Without random numbers of each process, such as in dropout.
OPTIONS = ["--dataset", "imagefolder", "--image-size", "32", "--epochs", "2", "--lr", "0.01", "--width-mult", "0.25"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for split, count in (("train", TRAIN_IMAGES), ("val", TEST_IMAGES)):
        for name in ("blue", "red"):
            draw_images(folder / "photos" / split / name, count)
    draw_images(folder / "photos" / "train" / "green", TRAIN_IMAGES)
    draw_images(folder / "photos" / "val" / "green", TEST_IMAGES)
    return folder


def arguments(folder: Path, name: str, *extra: str) -> list[str]:
    return [*OPTIONS, "--data-path", str(folder / "photos"), "--output-dir", str(folder / name), *extra]


def run_one(host, folder: Path, name: str, *extra: str, **options: object) -> dict:
    """The checkpoint of a run in one process with batches of eight."""
    argv = arguments(folder, name, "--batch-size", "8", *extra)
    [(status, _)] = host.run({"arguments": argv, "output": str(folder / f"{name}.txt"), **options})
    assert status == 0, (folder / f"{name}.txt").read_text()
    return load(folder / name / "checkpoint.pth")


def run_two(host, folder: Path, name: str, *extra: str, **options: object) -> dict:
    """The checkpoint of a run in two processes with batches of four each."""
    argv = arguments(folder, name, "--batch-size", "4", *extra)
    assert start_two(host, folder, name, argv, argv, **options) == [0, 0], output(folder, name)
    return load(folder / name / "checkpoint.pth")


def output(folder: Path, name: str) -> str:
    """The output of the first process of :func:`start_two`, then that of the second."""
    return "".join((folder / f"{name}.txt{rank}").read_text() for rank in (0, 1))


def start_two(host, folder: Path, name: str, *argvs: list[str], **options: object) -> list[int]:
    """Starts two processes with these arguments and returns their exit statuses."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = []
    for rank in (0, 1):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        path = str(folder / f"{name}.txt{rank}")
        runs.append({"arguments": argvs[rank], "output": path, "environment": environment, **options})
    return [status for status, _ in host.run(*runs)]


def assert_same_curves(actual: dict, expected: dict, tolerance: float) -> None:
    assert len(actual["history"]) == len(expected["history"]) == 2
    for entry, expected_entry in zip(actual["history"], expected["history"], strict=True):
        assert entry.keys() == expected_entry.keys()
        for name, value in expected_entry.items():
            assert entry[name] == pytest.approx(value, rel=tolerance), name
    for name, value in expected["model"].items():
        torch.testing.assert_close(actual["model"][name], value, rtol=tolerance, atol=tolerance)


def test_two_processes_equal_one(host, folder):
    """Statistics, gradients, averaged weights and the last batch are equal in float64, where rounding does not grow."""
    options = ["--model", "resnet18", "--sync-bn", "--model-ema", "--model-ema-steps", "1", "--clip-grad-norm", "1"]
    options += ["--model-ema-decay", "0.9"]
    expected = run_one(host, folder, "one", *options, in_double=True)
    checkpoint = run_two(host, folder, "two", *options, in_double=True)
    assert_same_curves(checkpoint, expected, 1e-7)  # the test loss is a float32
    for name, value in expected["model_ema"].items():
        torch.testing.assert_close(checkpoint["model_ema"][name], value, rtol=1e-9, atol=1e-9)
    assert checkpoint["averaged"] == expected["averaged"] == 2 * 6


def test_two_processes_equal_one_in_float32(host, folder):
    options = ["--model", "resnet50_gn_ws", "--depth-mult", "0.25"]
    assert_same_curves(run_two(host, folder, "two32", *options), run_one(host, folder, "one32", *options), 1e-4)


def test_each_test_image_counts_once(host, folder):
    """Two processes cannot share the 15 images equally."""
    checkpoint = run_two(host, folder, "counted", "--model", "resnet18", "--epochs", "1")
    accuracy = checkpoint["history"][0]["test_accuracy"] * 3 * TEST_IMAGES
    assert accuracy == pytest.approx(round(accuracy))
    alone = models.build_model("resnet18", 3, width_mult=0.25)  # has the statistics of the first process
    alone.load_state_dict(checkpoint["model"])
    _, test_set, _ = load_datasets("imagefolder", folder / "photos", 32)
    evaluation = evaluate(alone, ImageLoader(test_set, 4), 3, label_smoothing=0.1)
    assert checkpoint["history"][0]["test_loss"] == pytest.approx(evaluation.loss, rel=1e-5)
    model = run_one(host, folder, "counted_by_one", "--model", "resnet18", "--epochs", "1")
    assert model["settings"] == checkpoint["settings"]
    command = ["--test-only", "--weights", str(folder / "counted" / "model.pth"), "--model", "resnet18"]
    path = folder / "tested.txt"
    [(status, _)] = host.run({"arguments": arguments(folder, "unused", *command), "output": str(path)})
    assert status == 0
    assert f"test accuracy {checkpoint['history'][0]['test_accuracy']:.2%}" in path.read_text()


def test_unreadable_images_of_all_processes_are_counted(host, folder):
    """The second process loads the last test image."""
    photos = shutil.copytree(folder / "photos", folder / "damaged")
    sorted((photos / "val" / "red").iterdir())[-1].write_text("not an image")
    run_two(host, folder, "skipping", "--model", "resnet18", "--epochs", "1")
    argv = ["--test-only", "--weights", str(folder / "skipping" / "model.pth"), "--model", "resnet18"]
    argv = arguments(folder, "unused", *argv, "--on-bad-image", "skip", "--data-path", str(photos))
    assert start_two(host, folder, "skipped", argv, argv) == [0, 0]
    assert output(folder, "skipped").count(", unreadable images skipped: 1") == 1


def test_batch_that_one_process_cannot_read_is_skipped_by_both(host, folder):
    photos = shutil.copytree(folder / "photos", folder / "half")
    train_set, _, _ = load_datasets("imagefolder", photos, 32)
    loader = ImageLoader(train_set, 4, shuffle=True, rank=1, processes=2)
    for name in next(loader.batches(1)).names:
        Path(name).write_text("not an image")
    argv = ["--model", "resnet18", "--epochs", "1", "--on-bad-image", "skip", "--data-path", str(photos)]
    argv = arguments(folder, "halved", "--batch-size", "4", *argv)
    assert start_two(host, folder, "halved", argv, argv) == [0, 0], output(folder, "halved")
    assert "skipped: 1, unreadable images skipped: 4" in output(folder, "halved")


def test_processes_with_different_checkpoints_do_not_resume(host, folder):
    """As on machines without a shared directory."""
    run_two(host, folder, "here", "--model", "resnet18", "--epochs", "1")
    argvs = [arguments(folder, name, "--batch-size", "4", "--model", "resnet18") for name in ("here", "elsewhere")]
    argvs = [[*argv, "--epochs", "1", "--resume", "auto"] for argv in argvs]
    assert start_two(host, folder, "apart", *argvs) == [2, 2]
    assert output(folder, "apart").count("error: all processes must find the same checkpoint") == 2


@pytest.mark.slow
def test_sharded_parameters_train_equally(host, folder):
    options = ["--model", "resnet18", "--model-ema", "--model-ema-steps", "1", "--model-ema-decay", "0.9"]
    options += ["--clip-grad-norm", "1"]
    expected = run_two(host, folder, "ddp", *options, "--sync-bn", in_double=True)
    checkpoint = run_two(host, folder, "fsdp", *options, "--sync-bn", "--fsdp", in_double=True)
    assert_same_curves(checkpoint, expected, 1e-7)
    again = run_two(host, folder, "fsdp", *options, "--sync-bn", "--fsdp", "--resume", "auto", in_double=True)
    assert again["history"] == checkpoint["history"]
    # One process can read the checkpoint.
    command = ["--test-only", "--weights", str(folder / "fsdp" / "model.pth"), "--model", "resnet18"]
    [(status, _)] = host.run({"arguments": arguments(folder, "unused", *command), "output": str(folder / "whole.txt")})
    assert status == 0


def torchrun(folder: Path, name: str, scripts: Path, *options: str) -> subprocess.Popen:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["--max-restarts", "2", str(scripts / "train.py"), *arguments(folder, name, *options)]
    environment = {**os.environ, "PYTHONPATH": str(scripts.parents[1]), "OMP_NUM_THREADS": "1"}
    with open(folder / f"{name}.txt", "w") as file:
        return subprocess.Popen(argv, env=environment, stdout=file, stderr=subprocess.STDOUT)


def workers(process: subprocess.Popen) -> list[int]:
    """The ids of the processes that torchrun has started, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "train.py" in Path(f"/proc/{child}/cmdline").read_text()]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, "torchrun has ended"
        time.sleep(0.01)


ELASTIC = ["--model", "mobilenet_v2", "--batch-size", "4", "--epochs", "3"]
ELASTIC += ["--resume", "auto", "--checkpoint-steps", "1"]


@pytest.fixture(scope="module")
def uninterrupted(folder, scripts) -> dict:
    with torchrun(folder, "uninterrupted", scripts, *ELASTIC) as process:
        pass
    assert process.returncode == 0, (folder / "uninterrupted.txt").read_text()
    return load(folder / "uninterrupted" / "checkpoint.pth")


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "signum"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)])
def test_restarted_worker_resumes(folder, scripts, uninterrupted, rank, signum):
    """The final weights equal those of a run without restarts. On SIGTERM both workers save before the same batch."""
    name = f"{signum.name}{rank}"
    with torchrun(folder, name, scripts, *ELASTIC) as process:
        wait_for(folder / name / "checkpoint.pth", process)
        os.kill(workers(process)[rank], signum)
    lines = (folder / f"{name}.txt").read_text()
    assert process.returncode == 0, lines
    assert "resuming in epoch" in lines
    assert ("stopped in epoch" in lines) == (signum == signal.SIGTERM)
    checkpoint = load(folder / name / "checkpoint.pth")
    assert checkpoint["history"] == uninterrupted["history"]
    for key, value in uninterrupted["model"].items():
        assert torch.equal(checkpoint["model"][key], value), key
