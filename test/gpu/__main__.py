"""Runs the tests of this folder on a GPU and records their outcomes: ``make test-gpu``.

Without a GPU it says so in one line and ends with status 0. It installs nothing.
"""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parent

#: Tests of other folders that take the device.
RUNS = FOLDER.parent / "references" / "test_interruptions.py"
OTHER_TESTS = [f"{RUNS}::{name}" for name in ("test_kill_while_writing", "test_kill_of_a_compiled_run")]

#: Packages without which the tests cannot be collected. Others are optional: their tests are skipped.
NEEDED = ("torch", "torchvision", "numpy", "PIL", "pytest", "hypothesis")


def main(arguments: list[str]) -> int:
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if "torch" in missing:
        print(f"test-gpu ran nothing: torch is not installed for {sys.executable}")
        return 0
    import torch

    if not torch.cuda.is_available():
        print(f"test-gpu ran nothing: torch {torch.__version__} finds no GPU")
        return 0
    if missing:
        print(f"test-gpu ran nothing: not installed for {sys.executable}: {', '.join(missing)}", file=sys.stderr)
        return 2
    import pytest

    print(f"test-gpu: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    # Other versions of CUDA, cuDNN and Triton have warnings of their own.
    options = ["--device", "cuda", "--write-matrix", "-p", "no:cacheprovider", "-W", "default"]
    return int(pytest.main([str(FOLDER), *OTHER_TESTS, *options, *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
