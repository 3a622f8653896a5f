"""Compares the models that have a recipe: trains each with several seeds, and takes it to int8 by both engines.

python references/segmentation/variants.py --seeds 3 --machine "one core of a server CPU with VNNI"

A run takes two minutes on one core. An interrupted command continues when it is called again. ``--render`` trains
nothing, and regenerates the table in the README from the last results.
"""

import json
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import deployment
import torch
import train
from checkpoints import load
from shared import HelpFormatter, atomic_path, check_numbers, check_output_dir, run_as_script, with_table

SCRIPTS = Path(__file__).resolve().parent
RESULTS = SCRIPTS.parents[1] / "docs" / "source" / "variants_segmentation.json"
HEADER = ("model", "parameters", "mean IoU, lowest–highest", "int8, eager", "int8, pt2e", "seconds")


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model, with the seeds 0, 1, ...")
    parser.add_argument("--machine", default="a machine that was not described", help="description of the machine")
    parser.add_argument("--output-dir", default="outputs/segmentation", help="directory of the runs")
    parser.add_argument("--recipes", metavar="DIR", help="directory of the recipes; by default, recipes")
    parser.add_argument("--results", metavar="PATH", help="file of the results; by default, the one of the docs")
    parser.add_argument("--readme", metavar="PATH", help="file with the table; by default, README.md of the scripts")
    parser.add_argument("--render", action="store_true", help="only generate the table, from the last results")
    return parser


def main(args: Namespace) -> None:
    """Trains and measures all models, and writes the results and the table."""
    check_numbers(args)
    path, readme = Path(args.results or RESULTS), Path(args.readme or SCRIPTS / "README.md")
    if not args.render:
        write(path, json.dumps(measure(args), indent=1, ensure_ascii=False) + "\n")
    write(readme, with_table(readme, markdown(json.loads(path.read_text(encoding="utf-8")))))
    print(f"written: {path.name}, {readme.name}")


def measure(args: Namespace) -> dict[str, Any]:
    """The results of all recipes, and how they were measured."""
    torch.set_num_threads(1)
    folder = check_output_dir(args.output_dir)
    models = {}
    for recipe in sorted(Path(args.recipes or SCRIPTS / "recipes").glob("*.txt")):
        runs = [run(recipe, seed, folder / recipe.stem / f"seed{seed}") for seed in range(args.seeds)]
        models[recipe.stem] = {name: [figures[name] for figures in runs] for name in runs[0]}
    options = ["--seeds", str(args.seeds), "--machine", args.machine]
    return {
        "command": shlex.join(["python", "references/segmentation/variants.py", *options]),
        "machine": args.machine,
        "torch": torch.__version__.partition("+")[0],
        "models": models,
    }


def run(recipe: Path, seed: int, folder: Path) -> dict[str, float]:
    """The figures of a run, which is trained unless they are recorded."""
    path, weights = folder / "figures.json", str(folder / "model.pth")
    if not path.exists():
        options = [f"@{recipe}", "--seed", str(seed), "--output-dir", str(check_output_dir(folder))]
        trained = train.main(train.get_parser().parse_args(options))
        options = ["--weights", weights, "--engines", "eager", "pt2e"]
        accuracies = deployment.main(deployment.get_parser().parse_args(options))["mean_iou"]
        model, _ = load(weights)
        figures = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **accuracies,
            "seconds": trained["history"][-1]["seconds"],
        }
        write(path, json.dumps(figures))
    return json.loads(path.read_text(encoding="utf-8"))


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of each model, averaged over seeds."""
    return [
        (
            name,
            f"{figures['parameters'][0]:,}",
            f"{mean(figures['float']):.3f}, {min(figures['float']):.3f}–{max(figures['float']):.3f}",
            *(f"{mean(figures[f'int8, {engine}']):.3f}" for engine in deployment.ENGINES),
            f"{mean(figures['seconds']):.0f}",
        )
        for name, figures in results["models"].items()
    ]


def markdown(results: dict[str, Any]) -> str:
    """The table for the README, after its command."""
    alignment = ("---", *["---:"] * (len(HEADER) - 1))
    cells: Sequence[Sequence[str]] = (HEADER, alignment, *((f"`{name}`", *rest) for name, *rest in rows(results)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return f"`{results['command']}`, with torch {results['torch']}:\n\n{table}"


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
