"""``make test-gpu`` and ``python -m test.gpu``."""

import importlib
import subprocess
from pathlib import Path

import pytest
import torch

from .__main__ import FOLDER, OTHER_TESTS, main

ROOT = Path(__file__).parents[2]


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 0
    assert capsys.readouterr() == (f"test-gpu ran nothing: torch {torch.__version__} finds no GPU\n", "")


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("test-gpu ran nothing: torch is not installed for ")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")


@pytest.mark.usefixtures("gpu")
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hypothesis" else object())
    assert main([]) == 2
    assert capsys.readouterr().err.endswith(": hypothesis\n")


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu_it_runs_this_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(pytest, "main", lambda arguments: calls.append(arguments) or pytest.ExitCode.TESTS_FAILED)
    assert main(["-k", "fold"]) == 1
    ((folder, *options),) = calls
    assert folder == str(FOLDER)
    assert options[: len(OTHER_TESTS)] == OTHER_TESTS
    for test in OTHER_TESTS:
        file, name = test.split("::")
        assert f"def {name}(" in Path(file).read_text(encoding="utf-8")
    assert options[len(OTHER_TESTS) :][:2] == ["--device", "cuda"]
    assert options[-2:] == ["-k", "fold"]
    assert capsys.readouterr().out == f"test-gpu: A GPU, torch {torch.__version__}\n"


@pytest.mark.usefixtures("gpu")
def test_without_their_packages_runs_of_training_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchmetrics" else object())
    monkeypatch.setattr(pytest, "main", lambda arguments: calls.append(arguments) or pytest.ExitCode.OK)
    assert main([]) == 0
    assert calls[0][:2] == [str(FOLDER), "--device"]
    assert capsys.readouterr().out.endswith("leaves out runs of train.py, which need torchmetrics\n")


def test_make_installs_nothing() -> None:
    commands = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "test-gpu", "GPU=-x"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert commands.split()[1:] == ["-m", "test.gpu", "-x"]
