"""Compares all models that have a recipe: trains each with several seeds, takes it to int8, and times its steps.

python references/classification/variants.py --seeds 3 --jobs 2 --machine "two cores of a server CPU with VNNI"
python references/classification/variants.py --render

The first command resumes if it was interrupted. The second generates the pages again from the last results.
"""

import os
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common.cli import HelpFormatter, RecipeParser, check_numbers, run_as_script, training_parser
from common.data.loading import load_data
from common.distributed import world_size
from common.quantization import calibrate
from common.runs.checkpoints import load_checkpoint, model_arguments
from common.runs.files import check_output_dir
from common.runs.reproducibility import deterministic_algorithms, seed_everything
from common.runs.restore import load_trained
from common.runs.signals import Stopped, StopRequest
from common.settings import ModelCard, Settings, TrainingSettings
from common.tables.variants import Pages, write_pages, write_results
from common.timing import median_seconds
from common.training.evaluation import evaluate
from common.training.optimization import make_optimizer, make_schedule
from models import build_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parents[1]
BASELINE = "resnet18"  # steps of the other models are timed relative to its steps


@dataclass(frozen=True)
class MeasurementSettings(Settings):
    """How to measure, which the results record."""

    seeds: int
    jobs: int
    rounds: int
    machine: str

    def command(self) -> str:
        """The command, without the paths that it reads and writes."""
        argv = ["--seeds", str(self.seeds), "--jobs", str(self.jobs), "--rounds", str(self.rounds)]
        return shlex.join(["python", "references/classification/variants.py", *argv, "--machine", self.machine])


class Run(NamedTuple):
    """One recipe with one seed."""

    recipe: Path
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.recipe.stem} with seed {self.seed}"

    @property
    def stderr(self) -> Path:
        return self.folder / "errors.txt"

    def argv(self) -> list[str]:
        """Arguments of train.py."""
        options = ["--output-dir", str(self.folder), "--resume", "auto", "--device", "cpu"]
        return [f"@{self.recipe}", "--seed", str(self.seed), *options]

    def settings(self) -> TrainingSettings:
        return TrainingSettings.from_args(training_parser().parse_args(self.argv()))


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model, with the seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=2, help="runs in parallel, each on one thread")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of the timing")
    parser.add_argument("--machine", default="a machine that was not described", help="description of the machine")
    parser.add_argument("--output-dir", default="outputs/variants", help="directory of the runs")
    parser.add_argument("--recipes", metavar="DIR", help="directory of the recipes; by default, recipes")
    parser.add_argument("--docs", metavar="DIR", help="directory of page, picture and results; by default, docs/source")
    parser.add_argument("--readme", metavar="PATH", help="file with the table; by default, README.md of the scripts")
    parser.add_argument("--render", action="store_true", help="only generate the pages, from the last results")
    return parser


def main(args: Namespace) -> None:
    """Trains and measures all models, and writes the results, the pages and the picture."""
    check_numbers(args)
    pages = Pages(Path(args.docs or ROOT / "docs" / "source"), Path(args.readme or SCRIPTS / "README.md"))
    if not args.render:
        settings = MeasurementSettings.from_args(args)
        folder = check_output_dir(args.output_dir)
        recipes = find_recipes(Path(args.recipes or SCRIPTS / "recipes"))
        runs = [Run(r, seed, folder / r.stem / f"seed{seed}") for seed in range(settings.seeds) for r in recipes]
        train_all(runs, settings.jobs)
        write_results(pages.results, measure(runs, settings))
    write_pages(pages)
    print(f"written: {', '.join(path.name for path in pages.outputs())}")


def find_recipes(folder: Path) -> list[Path]:
    """The recipes in ``folder``; ``ValueError`` if the one of the baseline is missing."""
    recipes = sorted(folder.glob("*.txt"))
    if BASELINE not in [recipe.stem for recipe in recipes]:
        raise ValueError(f"recipes must hold {BASELINE}.txt, the baseline of the timing; {folder} does not")
    return recipes


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Trains or resumes the unfinished runs, ``jobs`` at a time.

    Raises:
        Stopped: on SIGINT or SIGTERM, after all runs have saved their state.
        ValueError: if a run fails; the message ends with the last line of its output.
    """
    waiting = [run for run in runs if test_accuracy(run) is None]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are trained", flush=True)
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    with StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not stop.signum:
                    running.append((waiting[0], start(waiting.pop(0))))
                if stop.signum:
                    raise Stopped("stopped; run the same command again to resume", stop.signum)
                for run, process in list(running):
                    if process.poll() is not None:
                        running.remove((run, process))
                        report(run, process.returncode)
                time.sleep(0.1)
        finally:
            for _, process in running:
                process.terminate()
            for _, process in running:
                process.wait()


def start(run: Run) -> "subprocess.Popen[bytes]":
    check_output_dir(run.folder)
    command = [sys.executable, str(SCRIPTS / "train.py"), *run.argv()]
    with open(run.stderr, "wb") as stderr:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)


def report(run: Run, status: int) -> None:
    """Prints the result of a run; ``ValueError`` if it has none."""
    accuracy = test_accuracy(run) if status == 0 else None
    if accuracy is None:
        lines = run.stderr.read_text(encoding="utf-8", errors="replace").splitlines()
        raise ValueError(f"{run.name} ended with status {status}: {lines[-1] if lines else 'no output'}")
    print(f"{run.name}: test accuracy {accuracy:.2%}", flush=True)


def test_accuracy(run: Run) -> float | None:
    """The test accuracy of a run; ``None`` if it is not finished, or had other settings than the recipe has now."""
    path, settings = run.folder / "model.pth", run.settings()
    if not path.exists():
        return None
    loader, _, classes = load_data(settings.data)
    try:
        checkpoint = load_checkpoint(path, settings.model.model, len(classes))
    except ValueError as error:  # train.py will replace the file
        print(f"warning: {error}", file=sys.stderr)
        return None
    is_current = checkpoint["settings"] == settings.fixed(world_size(), len(loader.dataset))
    is_current = is_current and model_arguments(checkpoint) == settings.model.arguments
    return checkpoint["test_accuracy"] if is_current else None


def measure(runs: Sequence[Run], settings: MeasurementSettings) -> dict[str, Any]:
    """The results of finished runs, and how they were measured."""
    torch.set_num_threads(1)
    first_runs = [run for run in runs if run.seed == 0]
    print("taking the models to int8", flush=True)
    models = {run.recipe.stem: describe([r for r in runs if r.recipe == run.recipe]) for run in first_runs}
    print("timing", flush=True)
    seconds = step_seconds([training_step(run.settings()) for run in first_runs], settings.rounds)
    baseline = seconds[list(models).index(BASELINE)]
    for entry, model_seconds in zip(models.values(), seconds, strict=True):
        entry["step"] = round(model_seconds / baseline, 3)
    return {
        "command": settings.command(),
        "machine": settings.machine,
        "torch": torch.__version__.partition("+")[0],
        "seeds": settings.seeds,
        "rounds": settings.rounds,
        "test_images": len(load_data(first_runs[0].settings().data)[1].dataset),
        "models": models,
    }


def describe(runs: Sequence[Run]) -> dict[str, Any]:
    """The accuracies of one recipe with each seed, and the size of its model."""
    float_accuracies, int8_accuracies, problem = [], [], ""
    for run in runs:
        settings = run.settings()
        train_loader, test_loader, classes = load_data(settings.data)
        card = ModelCard(settings.model.model, settings.data.dataset, settings.data.image_size, classes)
        model = load_trained(run.folder / "model.pth", card).eval()
        float_accuracies.append(evaluate(model, test_loader, len(classes)).accuracy)
        seed_everything(run.seed)
        try:
            int8 = calibrate(model, train_loader)
        except TypeError as error:  # names the layer without a quantizable twin
            problem = str(error)
            continue
        int8_accuracies.append(evaluate(int8, test_loader, len(classes)).accuracy)
    parameters, multiply_adds = model_size(build(settings, classes), settings.data.image_size)
    return {
        "recipe": recipe_arguments(runs[0].recipe),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "accuracy": float_accuracies,
        "int8": int8_accuracies,
        "problem": problem,
    }


def recipe_arguments(path: Path) -> str:
    """The arguments in a recipe, in one line."""
    arguments = map(RecipeParser().convert_arg_line_to_args, path.read_text(encoding="utf-8").splitlines())
    return " ".join(chain.from_iterable(arguments))


def model_size(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Parameters of a model, and multiply-adds of its convolutions and matrix products for one image."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def build(settings: TrainingSettings, classes: Sequence[str]) -> nn.Module:
    return build_model(settings.model.model, len(classes), **settings.model.arguments)


def training_step(settings: TrainingSettings) -> Callable[[], None]:
    """A function that takes one training step, always on the same batch and at the initial learning rate."""
    seed_everything(settings.data.seed)
    loader, _, classes = load_data(settings.data)
    model = build(settings, classes).train()
    optimizer = make_optimizer(model, settings.optimization)
    make_schedule(optimizer, settings.optimization, len(loader))
    images, labels = next(iter(loader))
    epoch = settings.epoch

    def step() -> None:
        optimizer.zero_grad()
        output = model(images)
        nn.functional.cross_entropy(output, labels, label_smoothing=epoch.label_smoothing).backward()
        if epoch.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), epoch.clip_grad_norm)
        optimizer.step()

    return step


def step_seconds(steps: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Median processor time of each step, which does not include waiting for a busy machine.

    Each step runs twice in a row and the second one counts, since in training steps of one model follow each other.
    oneDNN caches 1,024 kernels, fewer than all models together use, so the first step compiles its kernels again.
    """
    with deterministic_algorithms():
        return median_seconds(steps, rounds, clock=time.process_time, repeats=2)


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
