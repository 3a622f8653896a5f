"""Draws models and checks them: ``python -m test.models --models 5000 --seed 1``, or ``make fuzz``.

With the name of a file, runs all checks on the model in it: ``python -m test.models outputs/fuzz/x.py``.
"""

import argparse
import contextlib
import faulthandler
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .checks import CHECKS
from .outcomes import RefusedError
from .running import Found, Summary, run, run_check
from .subject import Subject

#: How often ``make fuzz`` runs each check: those that export or train a graph take seconds.
PERIODS = {
    "fold": 1,
    "eager x86": 1,
    "eager onednn": 1,
    "eager qnnpack": 2,
    "standalone": 2,
    "state eager": 4,
    "qat eager x86": 4,
    "qat eager onednn": 4,
    "torchscript": 8,
    "torchscript int8": 8,
    "pt2e x86": 4,
    "pt2e onnxruntime": 8,
    "pt2e tensorrt": 8,
    "state pt2e": 16,
    "qat pt2e": 8,
    "pt2": 16,
    "pt2 int8": 16,
    "lowered": 16,
    "lowered int8": 16,
    "onnx": 32,
    "onnx-qdq": 32,
    "aoti": 200,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="the source of a model, to run all checks on it")
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="how many of the models an ended run has checked")
    parser.add_argument("--only", choices=CHECKS, nargs="*", help="these checks, on every model")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/fuzz"))
    parser.add_argument("--shrink-seconds", type=float, default=120.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.file:
        return _check_file(args.file, args.only or list(CHECKS))
    periods = dict.fromkeys(args.only, 1) if args.only else PERIODS
    args.output_dir.mkdir(parents=True, exist_ok=True)
    # Stays if a kernel ends the process.
    running = args.output_dir / f"seed{args.seed}_running.py"
    faulthandler.enable()
    summary = Summary()
    with tqdm(total=args.models, initial=args.skip, unit="model") as bar:

        def on_progress(state: Summary) -> None:
            nonlocal summary
            summary = state
            bar.update(args.skip + summary.models - bar.n)
            bar.set_postfix(failures=sum(summary.counts.values()), refused=summary.refused_models)
            for i, found in enumerate(summary.failures.values()):
                path = args.output_dir / f"seed{args.seed}_{args.skip + i:03}_{found.check.replace(' ', '_')}.py"
                path.write_text(found.report(), encoding="utf-8")

        # An interrupt ends the run with a summary.
        with contextlib.suppress(KeyboardInterrupt):
            run(
                args.models,
                args.seed,
                periods,
                skip=args.skip,
                shrink_seconds=args.shrink_seconds,
                on_model=partial(running.write_text, encoding="utf-8"),
                on_progress=on_progress,
            )
    running.unlink(missing_ok=True)
    print(_describe(summary, args.output_dir))
    return bool(summary.failures)


def _describe(summary: Summary, folder: Path) -> str:
    lines = [
        f"{summary.models} models: {summary.passed} passed all checks, {summary.refused_models} were refused by one, "
        f"{sum(summary.counts.values())} checks failed, {summary.unfit} models amplify rounding in float32",
        "",
        "check: runs, seconds",
        *(f"  {check}: {runs}, {summary.seconds[check]:.0f}" for check, runs in summary.checks.items()),
        "",
        "refusals by check",
        *(f"  {count} {check}: {reason}" for (check, reason), count in summary.refusals.most_common()),
    ]
    if summary.failures:
        lines += ["", f"failures, with sources in {folder}"]
        lines += [f"  {count} {kind}" for kind, count in summary.counts.most_common()]
    return "\n".join(lines)


def _check_file(path: Path, checks: list[str]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(path.read_text(encoding="utf-8"), Path(folder))
        for check in checks:
            outcome = run_check(subject, check)
            failed += isinstance(outcome, Found)
            shown = "refused: " if isinstance(outcome, RefusedError) else "FAILED: " if outcome else ""
            print(f"{check}: {shown}{outcome.message if outcome else 'passed'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
