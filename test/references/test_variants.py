"""The command that makes the table of the variants: what it trains, what it trains no more, what it measures."""

import json
import signal
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import train
import variants
from checkpoints import load_checkpoint
from interruption import Stopped
from models import build_model
from torch import nn
from variants import Run
from variants_pages import BEGIN, END

from ._support import Host

SIZE = ["--width-mult=0.0625", "--depth-mult=0.25", "--image-size=32", "--batch-size=8", "--epochs=1", "--lr=0.01"]


def arguments(*words: str) -> Namespace:
    return variants.get_parser().parse_args(words)


@pytest.fixture
def recipes(tmp_path: Path, photos: Path) -> Path:
    """Recipes of two models on 16 pictures."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("resnet18", "resnet26_sasa"):
        words = [f"--model={name}", "--dataset=imagefolder", f"--data-path={photos}", *SIZE]
        if name != "resnet18":
            words[3] = "--width-mult=0.25"
        (folder / f"{name}.txt").write_text("\n".join(["# A comment.", *words]) + "\n", encoding="utf-8")
    return folder


class Ended:
    """A run that has ended before anyone asks."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, host: Host) -> list[str]:
    """The runs that are trained, in order; each is forked, which saves it the imports."""
    names: list[str] = []

    def start(run: Run) -> Ended:
        names.append(run.name())
        run.folder.mkdir(parents=True, exist_ok=True)
        variants.errors_of(run).unlink(missing_ok=True)
        ((status, _),) = host.run({"arguments": run.words(), "output": str(variants.errors_of(run))})
        return Ended(status)

    monkeypatch.setattr(variants, "start", start)
    return names


def test_a_table_from_nothing_and_again(recipes: Path, tmp_path: Path, started: list[str]) -> None:
    """Trains each run; called again, only the one whose result is damaged."""
    readme, output = tmp_path / "README.md", tmp_path / "outputs"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    words = ["--seeds", "2", "--jobs", "2", "--rounds", "1", "--output-dir", str(output), "--recipes", str(recipes)]
    words += ["--docs", str(tmp_path), "--readme", str(readme), "--machine", "a machine"]
    variants.main(arguments(*words))
    assert len(started) == len(set(started)) == 4
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

    (output / "resnet18" / "seed1" / "model.pth").write_bytes(b"cut off")
    variants.main(arguments(*words))
    assert started[4:] == ["resnet18 with the seed 1"]
    last = json.loads((tmp_path / "variants.json").read_text(encoding="utf-8"))
    assert last["models"]["resnet18"] == small


def test_a_run_of_another_recipe_is_no_result(recipes: Path, tmp_path: Path, started: list[str]) -> None:
    """It is neither taken for one of the recipe as it is now, nor overwritten."""
    run = Run(recipes / "resnet18.txt", 0, tmp_path / "run")
    variants.train_all([run], 1)
    assert variants.tested_accuracy(run) is not None
    assert variants.tested_accuracy(run._replace(seed=1)) is None
    text = run.recipe.read_text(encoding="utf-8")
    for old, new in (("--epochs=1", "--epochs=2"), ("--width-mult=0.0625", "--width-mult=0.125")):
        run.recipe.write_text(text.replace(old, new), encoding="utf-8")
        assert variants.tested_accuracy(run) is None
    before = (run.folder / "model.pth").read_bytes()
    with pytest.raises(ValueError, match=r"resnet18 with the seed 0 ended with status 2: error: .* was made with size"):
        variants.train_all([run], 1)
    assert (run.folder / "model.pth").read_bytes() == before


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(recipes: Path, tmp_path: Path) -> None:
    """It ends with what the same run ends with here; one that fails is told by its last line."""
    run = Run(recipes / "resnet18.txt", 1, tmp_path / "run")
    variants.train_all([run], 1)
    here = run._replace(folder=tmp_path / "here")
    found = train.main(here.arguments())
    assert variants.tested_accuracy(run) == found["test_accuracy"]
    weights = [load_checkpoint(r.folder / "model.pth", "resnet18", 2)["model"] for r in (run, here)]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    run.recipe.write_text(run.recipe.read_text(encoding="utf-8") + "--label-smoothing=2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"with the seed 1 ended with status 2: error: label_smoothing must be in"):
        variants.train_all([run], 1)


class Process:
    """Stands for a run that goes on until it is stopped."""

    returncode = -signal.SIGTERM

    def __init__(self) -> None:
        self.calls: list[str] = []

    def poll(self) -> None:
        signal.raise_signal(signal.SIGTERM)

    def terminate(self) -> None:
        self.calls.append("terminate")

    def wait(self) -> None:
        self.calls.append("wait")


def test_a_signal_stops_all_runs(recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[Process] = []

    def start(run: Run) -> Process:
        processes.append(Process())
        return processes[-1]

    monkeypatch.setattr(variants, "start", start)
    runs = [Run(recipes / "resnet18.txt", seed, tmp_path / str(seed)) for seed in range(3)]
    with pytest.raises(Stopped, match="the same command goes on") as stopped:
        variants.train_all(runs, 2)
    assert stopped.value.signum == signal.SIGTERM
    assert [process.calls for process in processes] == [["terminate", "wait"]] * 2


def test_recipes_without_the_one_to_compare_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipes must hold resnet18.txt"):
        variants.main(arguments("--recipes", str(tmp_path), "--output-dir", str(tmp_path)))


def test_multiply_adds_of_a_model_by_hand() -> None:
    """A convolution with bias, and a matrix product: outputs times what each sums."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    assert variants.size_of(model, 32) == (3 * 4 * 9 + 4 + 3600 * 2 + 2, 4 * 30 * 30 * 27 + 3600 * 2)


def test_a_step_trains_as_the_engine_does(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls, gradients are clipped where the recipe asks for it, weights change."""
    recipe = recipes / "resnet18.txt"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "--clip-grad-norm=0.001\n", encoding="utf-8")
    built: list[nn.Module] = []
    build = variants.build

    def noting(args: Namespace, classes: Sequence[str]) -> nn.Module:
        built.append(build(args, classes))
        return built[-1]

    monkeypatch.setattr(variants, "build", noting)
    step = variants.training_step(Run(recipe, 0, Path()).arguments())
    (model,) = built
    before = [p.detach().clone() for p in model.parameters()]
    step()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm == pytest.approx(0.001, rel=1e-2)
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert model.training


def test_steps_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median over the rounds after the first three, of the second call in each, by a clock that only steps move."""
    now, taken = [0.0], []
    monkeypatch.setattr(variants.time, "process_time", lambda: now[0])

    def step_of(name: str, seconds: list[float]) -> Callable[[], None]:
        def step() -> None:
            now[0] += seconds[taken.count(name)]
            taken.append(name)

        return step

    steps = [step_of("a", [90] * 6 + [50, 1, 50, 9, 50, 2]), step_of("b", [90] * 6 + [50, 4, 50, 4, 50, 5])]
    assert variants.time_in_turn(steps, 3) == [2, 4]
    assert taken == ["a", "a", "b", "b"] * 6
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("flag", ["seeds", "jobs", "rounds"])
def test_wrong_numbers(flag: str) -> None:
    with pytest.raises(ValueError, match=f"{flag} must be at least 1; got 0"):
        variants.main(arguments(f"--{flag}", "0"))
