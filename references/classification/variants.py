"""Makes the table of all models that have a recipe: each trained with several seeds, taken to int8, and timed.

python references/classification/variants.py --seeds 3 --jobs 2 --machine "two cores of a server CPU with VNNI"
python references/classification/variants.py --render

Interrupted, the same command goes on where it was. The second makes the pages again from the results of the last run.
"""

import os
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import options
import torch
from checkpoints import load_checkpoint, model_arguments
from evaluation import evaluate
from interruption import Stopped, StopRequest
from loading import load_data
from models import build_model
from optimization import make_optimizer, make_schedule
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from train_quantization import calibrate
from trained import load_trained
from utils import HelpFormatter, check_numbers, check_output_dir, deterministic_algorithms, run_as_script
from utils import seed_everything as seed
from variants_pages import Pages, write_pages, write_results

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parents[1]
BASE = "resnet18"  # the model to whose step the others are compared
WARM_UP = 3  # rounds that are not counted


class Run(NamedTuple):
    """One recipe with one seed."""

    recipe: Path
    seed: int
    folder: Path

    def words(self) -> list[str]:
        """Arguments of train.py."""
        place = ["--output-dir", str(self.folder), "--resume", "auto", "--device", "cpu"]
        return [f"@{self.recipe}", "--seed", str(self.seed), *place]

    def arguments(self) -> Namespace:
        return options.get_parser().parse_args(self.words())

    def name(self) -> str:
        return f"{self.recipe.stem} with the seed {self.seed}"


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model, with the seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, each on one thread")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of the timing")
    parser.add_argument("--machine", default="a machine that was not described", help="what it runs on, in words")
    parser.add_argument("--output-dir", default="outputs/variants", help="where the runs go")
    parser.add_argument("--recipes", metavar="DIR", help="without it, those beside this script")
    parser.add_argument("--docs", metavar="DIR", help="of page, picture and results; without it, docs/source")
    parser.add_argument("--readme", metavar="PATH", help="of the table; without it, that beside this script")
    parser.add_argument("--render", action="store_true", help="make the pages from the last results, and run nothing")
    return parser


def main(args: Namespace) -> None:
    """Trains and measures what ``args`` of :func:`get_parser` say, and writes results, pages and picture."""
    check_numbers(args)
    pages = Pages(Path(args.docs or ROOT / "docs" / "source"), Path(args.readme or SCRIPTS / "README.md"))
    if not args.render:
        folder = check_output_dir(args.output_dir)
        recipes = find_recipes(Path(args.recipes or SCRIPTS / "recipes"))
        runs = [
            Run(recipe, number, folder / recipe.stem / f"seed{number}")
            for number in range(args.seeds)
            for recipe in recipes
        ]
        train_all(runs, args.jobs)
        write_results(pages.results, measure(runs, args))
    write_pages(pages)
    print(f"written: {', '.join(path.name for path in pages.written())}")


def find_recipes(folder: Path) -> list[Path]:
    """The recipes in ``folder``; ``ValueError`` without the one that the others are compared to."""
    recipes = sorted(folder.glob("*.txt"))
    if BASE not in [recipe.stem for recipe in recipes]:
        raise ValueError(f"recipes must hold {BASE}.txt, to which the others are compared; {folder} does not")
    return recipes


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Trains what is not yet trained, ``jobs`` runs at a time; each is taken up where an earlier command left it.

    Raises:
        Stopped: on Ctrl-C or SIGTERM, once all runs have saved what they had.
        ValueError: if a run fails, with its last line.
    """
    waiting = [run for run in runs if tested_accuracy(run) is None]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are trained", flush=True)
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    with StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not stop.signum:
                    running.append((waiting[0], start(waiting.pop(0))))
                if stop.signum:
                    raise Stopped("stopped; the same command goes on", stop.signum)
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
    command = [sys.executable, str(SCRIPTS / "train.py"), *run.words()]
    with open(errors_of(run), "wb") as errors:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)


def errors_of(run: Run) -> Path:
    return run.folder / "errors.txt"


def report(run: Run, status: int) -> None:
    """Says how a run ended; ``ValueError`` if it has no result."""
    accuracy = tested_accuracy(run) if status == 0 else None
    if accuracy is None:
        lines = errors_of(run).read_text(encoding="utf-8", errors="replace").splitlines()
        raise ValueError(f"{run.name()} ended with status {status}: {lines[-1] if lines else 'it says nothing'}")
    print(f"{run.name()}: test accuracy {accuracy:.2%}", flush=True)


def tested_accuracy(run: Run) -> float | None:
    """What a finished run reached; ``None`` if there is none with the settings of the recipe as it is now."""
    path, args = run.folder / "model.pth", run.arguments()
    if not path.exists():
        return None
    loader, _, classes = load_data(args)
    try:
        checkpoint = load_checkpoint(path, args.model, len(classes))
    except ValueError as error:  # train.py writes it again
        print(f"warning: {error}", file=sys.stderr)
        return None
    settings = options.settings_of(args, len(loader.dataset))
    is_same = checkpoint["settings"] == settings and model_arguments(checkpoint) == options.sizes_of(args)
    return checkpoint["test_accuracy"] if is_same else None


def measure(runs: Sequence[Run], args: Namespace) -> dict[str, Any]:
    """The results of finished runs: what stands in the table, and what they were made with."""
    torch.set_num_threads(1)
    first = [run for run in runs if run.seed == 0]
    print("taking the models to int8", flush=True)
    models = {run.recipe.stem: describe([other for other in runs if other.recipe == run.recipe]) for run in first}
    print("timing", flush=True)
    seconds = time_in_turn([training_step(run.arguments()) for run in first], args.rounds)
    base = seconds[[run.recipe.stem for run in first].index(BASE)]
    for entry, found in zip(models.values(), seconds, strict=True):
        entry["step"] = round(found / base, 3)
    return {
        "command": command_of(args),
        "machine": args.machine,
        "torch": torch.__version__.partition("+")[0],
        "seeds": args.seeds,
        "rounds": args.rounds,
        "test_images": len(load_data(first[0].arguments())[1].dataset),
        "models": models,
    }


def command_of(args: Namespace) -> str:
    """The command, without the places that it reads and writes."""
    words = ["--seeds", str(args.seeds), "--jobs", str(args.jobs), "--rounds", str(args.rounds)]
    return shlex.join(["python", "references/classification/variants.py", *words, "--machine", args.machine])


def describe(runs: Sequence[Run]) -> dict[str, Any]:
    """What one recipe gave with each seed, and the size of its model."""
    in_float, in_int8, problem = [], [], ""
    for run in runs:
        args = run.arguments()
        train_loader, test_loader, classes = load_data(args)
        model = load_trained(run.folder / "model.pth", args, classes).eval()
        in_float.append(evaluate(model, test_loader, len(classes)).accuracy)
        seed(args.seed)
        try:
            converted = calibrate(model, train_loader)
        except TypeError as error:  # names the layer that has no twin
            problem = str(error)
            continue
        in_int8.append(evaluate(converted, test_loader, len(classes)).accuracy)
    parameters, multiply_adds = size_of(build(args, classes), args.image_size)
    return {
        "recipe": recipe_of(runs[0].recipe),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "accuracy": in_float,
        "int8": in_int8,
        "problem": problem,
    }


def recipe_of(path: Path) -> str:
    """The arguments in a recipe, in one line."""
    words = map(options.RecipeParser().convert_arg_line_to_args, path.read_text(encoding="utf-8").splitlines())
    return " ".join(chain.from_iterable(words))


def size_of(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Parameters of a model, and its multiply-adds for one image: those of convolutions and matrix products."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def build(args: Namespace, classes: Sequence[str]) -> nn.Module:
    return build_model(args.model, len(classes), **options.sizes_of(args))


def training_step(args: Namespace) -> Callable[[], None]:
    """One step as training takes it, on one batch, at the learning rate that the schedule begins with."""
    seed(args.seed)
    loader, _, classes = load_data(args)
    model = build(args, classes).train()
    optimizer = make_optimizer(model, args)
    make_schedule(optimizer, args, len(loader))
    images, labels = next(iter(loader))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels, label_smoothing=args.label_smoothing).backward()
        if args.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
        optimizer.step()

    return step


def time_in_turn(steps: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Median seconds of computing of each, all taken in turn, so that a slow moment slows all of them.

    Processor time, which waits of one thread for a busy machine do not lengthen. In its turn each is called twice and
    timed the second time, as in training, where a step follows one of the same model: oneDNN keeps 1,024 kernels, and
    all models together have more, so that the first call would compile its own again.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    with deterministic_algorithms():
        for i in range(rounds + WARM_UP):
            for step, times in zip(steps, seconds, strict=True):
                step()
                begin = time.process_time()
                step()
                if i >= WARM_UP:
                    times.append(time.process_time() - begin)
    return [median(times) for times in seconds]


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
