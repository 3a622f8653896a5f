"""variants.py: which runs it trains and which it keeps, and how it measures."""

import json
import signal
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import train
import variants
from common.runs.checkpoints import load_checkpoint
from common.runs.signals import Stopped
from common.settings import TrainingSettings
from common.tables.variants import BEGIN, END
from models import build_model
from torch import nn
from variants import Run

from ._support import Host

SIZE = ["--width-mult=0.0625", "--depth-mult=0.25", "--image-size=32", "--batch-size=8", "--epochs=1", "--lr=0.01"]


def parse(*argv: str) -> Namespace:
    return variants.get_parser().parse_args(argv)


@pytest.fixture
def recipes(tmp_path: Path, photos: Path) -> Path:
    """Recipes of two models on 16 images."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("resnet18", "resnet26_sasa"):
        lines = [f"--model={name}", "--dataset=imagefolder", f"--data-path={photos}", *SIZE]
        if name != "resnet18":
            lines[3] = "--width-mult=0.25"
        (folder / f"{name}.txt").write_text("\n".join(["# A comment.", *lines]) + "\n", encoding="utf-8")
    return folder


class EndedProcess:
    """A process that has ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def trained_runs(monkeypatch: pytest.MonkeyPatch, host: Host) -> list[str]:
    """Names of the runs that are trained, in order. Runs are forked, which saves them the imports."""
    names: list[str] = []

    def start(run: Run) -> EndedProcess:
        names.append(run.name)
        run.folder.mkdir(parents=True, exist_ok=True)
        run.stderr.unlink(missing_ok=True)
        ((status, _),) = host.run({"arguments": run.argv(), "output": str(run.stderr)})
        return EndedProcess(status)

    monkeypatch.setattr(variants, "start", start)
    return names


@pytest.mark.slow
def test_table_from_nothing_and_again(recipes: Path, tmp_path: Path, trained_runs: list[str]) -> None:
    """The first call trains all runs, and the second only the one whose result is damaged."""
    readme, output = tmp_path / "README.md", tmp_path / "outputs"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    argv = ["--seeds", "2", "--jobs", "2", "--rounds", "1", "--output-dir", str(output), "--recipes", str(recipes)]
    argv += ["--docs", str(tmp_path), "--readme", str(readme), "--machine", "a machine"]
    variants.main(parse(*argv))
    assert len(trained_runs) == len(set(trained_runs)) == 4
    results = json.loads((tmp_path / "variants.json").read_text(encoding="utf-8"))
    assert list(results["models"]) == ["resnet18", "resnet26_sasa"]
    small = results["models"]["resnet18"]
    assert small["step"] == 1
    assert len(small["accuracy"]) == len(small["int8"]) == 2
    assert small["parameters"] == sum(p.numel() for p in build_model("resnet18", 2, 0.0625, 0.25).parameters())
    logs = [(output / "resnet18" / f"seed{seed}" / "train.log").read_text(encoding="utf-8") for seed in (0, 1)]
    for accuracy, log in zip(small["accuracy"], logs, strict=True):
        assert f"test accuracy {accuracy:.2%}" in log
    assert (results["seeds"], results["test_images"], results["machine"]) == (2, 4, "a machine")
    assert results["command"].endswith("variants.py --seeds 2 --jobs 2 --rounds 1 --machine 'a machine'")
    assert "| resnet18 |" in readme.read_text(encoding="utf-8")

    attention = results["models"]["resnet26_sasa"]
    assert attention["int8"] == []
    assert "MultiHeadedSpatialAttention" in attention["problem"]

    (output / "resnet18" / "seed1" / "model.pth").write_bytes(b"damaged")
    variants.main(parse(*argv))
    assert trained_runs[4:] == ["resnet18 with seed 1"]
    last = json.loads((tmp_path / "variants.json").read_text(encoding="utf-8"))
    assert last["models"]["resnet18"] == small


def test_run_of_a_changed_recipe(recipes: Path, tmp_path: Path, trained_runs: list[str]) -> None:
    """It is not a result of the recipe, and it is not overwritten."""
    run = Run(recipes / "resnet18.txt", 0, tmp_path / "run")
    variants.train_all([run], 1)
    assert variants.test_accuracy(run) is not None
    assert variants.test_accuracy(run._replace(seed=1)) is None
    text = run.recipe.read_text(encoding="utf-8")
    for old, new in (("--epochs=1", "--epochs=2"), ("--width-mult=0.0625", "--width-mult=0.125")):
        run.recipe.write_text(text.replace(old, new), encoding="utf-8")
        assert variants.test_accuracy(run) is None
    content = (run.folder / "model.pth").read_bytes()
    with pytest.raises(ValueError, match=r"resnet18 with seed 0 ended with status 2: error: .* was made with size"):
        variants.train_all([run], 1)
    assert (run.folder / "model.pth").read_bytes() == content


@pytest.mark.slow
def test_run_in_a_new_process(recipes: Path, tmp_path: Path) -> None:
    """It equals the same run in this process; the error of a failed run has its last line."""
    run = Run(recipes / "resnet18.txt", 1, tmp_path / "run")
    variants.train_all([run], 1)
    here = run._replace(folder=tmp_path / "here")
    result = train.main(train.get_parser().parse_args(here.argv()))
    assert variants.test_accuracy(run) == result["test_accuracy"]
    weights = [load_checkpoint(r.folder / "model.pth", "resnet18", 2)["model"] for r in (run, here)]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    run.recipe.write_text(run.recipe.read_text(encoding="utf-8") + "--label-smoothing=2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"with seed 1 ended with status 2: error: label_smoothing must be in"):
        variants.train_all([run], 1)


class Process:
    """A process that runs until it is terminated."""

    returncode = -signal.SIGTERM

    def __init__(self) -> None:
        self.calls: list[str] = []

    def poll(self) -> None:
        signal.raise_signal(signal.SIGTERM)

    def terminate(self) -> None:
        self.calls.append("terminate")

    def wait(self) -> None:
        self.calls.append("wait")


def test_signal_stops_all_runs(recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[Process] = []

    def start(run: Run) -> Process:
        processes.append(Process())
        return processes[-1]

    monkeypatch.setattr(variants, "start", start)
    runs = [Run(recipes / "resnet18.txt", seed, tmp_path / str(seed)) for seed in range(3)]
    with pytest.raises(Stopped, match="run the same command again") as stopped:
        variants.train_all(runs, 2)
    assert stopped.value.signum == signal.SIGTERM
    assert [process.calls for process in processes] == [["terminate", "wait"]] * 2


def test_recipes_without_the_baseline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipes must hold resnet18.txt"):
        variants.main(parse("--recipes", str(tmp_path), "--output-dir", str(tmp_path)))


def test_multiply_adds_by_hand() -> None:
    """For a convolution with bias and a matrix product: outputs times the products that each sums."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    assert variants.model_size(model, 32) == (3 * 4 * 9 + 4 + 3600 * 2 + 2, 4 * 30 * 30 * 27 + 3600 * 2)


def test_training_step(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It clips gradients as the recipe says, and changes the weights."""
    recipe = recipes / "resnet18.txt"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "--clip-grad-norm=0.001\n", encoding="utf-8")
    models: list[nn.Module] = []
    build = variants.build

    def build_and_record(settings: TrainingSettings, classes: Sequence[str]) -> nn.Module:
        models.append(build(settings, classes))
        return models[-1]

    monkeypatch.setattr(variants, "build", build_and_record)
    step = variants.training_step(Run(recipe, 0, Path()).settings())
    (model,) = models
    initial = [p.detach().clone() for p in model.parameters()]
    step()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm == pytest.approx(0.001, rel=1e-2)
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), initial, strict=True))
    assert model.training


def test_steps_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median covers the second call of each round after the first three; only steps advance the clock."""
    now, calls = [0.0], []
    monkeypatch.setattr(variants.time, "process_time", lambda: now[0])

    def step_of(name: str, seconds: list[float]) -> Callable[[], None]:
        def step() -> None:
            now[0] += seconds[calls.count(name)]
            calls.append(name)

        return step

    steps = [step_of("a", [90] * 6 + [50, 1, 50, 9, 50, 2]), step_of("b", [90] * 6 + [50, 4, 50, 4, 50, 5])]
    assert variants.step_seconds(steps, 3) == [2, 4]
    assert calls == ["a", "a", "b", "b"] * 6
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("option", ["seeds", "jobs", "rounds"])
def test_bad_numbers(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1; got 0"):
        variants.main(parse(f"--{option}", "0"))
