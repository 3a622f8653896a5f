"""Time that ``import torchvision_layers.nn`` adds to the imports of torch and torchvision.

    python benchmarks/import_time.py

starts processes in turn that import only torch and torchvision, or the layers as well, and prints the median of the
difference in processor time, and the modules that take most of it. The target is 50 ms.
"""

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from layers import json_file, write
from measure import conditions

_PEERS = "import torch, torchvision"
_OURS = "import torchvision_layers.nn"
_TIMED = "import time; {peers}; start = time.process_time(); {ours}; print(time.process_time() - start)"
#: Milliseconds.
TARGET = 50


def milliseconds(code: str) -> float:
    timed = _TIMED.format(peers=_PEERS, ours=code)
    result = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return 1000 * float(result.stdout)


def slowest_modules(count: int) -> list[tuple[str, float]]:
    """The modules whose own code takes longest, of those that torch and torchvision have not imported."""
    command = [sys.executable, "-X", "importtime", "-c", f"{_PEERS}; {_OURS}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [re.match(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)", line) for line in lines]
    modules = [(row[3], int(row[1]) / 1000) for row in rows if row]
    first = next(i for i, (name, _) in enumerate(modules) if name.startswith("torchvision_layers."))
    return sorted(modules[first:], key=lambda module: -module[1])[:count]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="pairs of processes; default: 15")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the figures as JSON to this file")
    args = parser.parse_args(argv)
    ours, nothing = [], []
    for _ in range(args.rounds):
        nothing.append(milliseconds("pass"))
        ours.append(milliseconds(_OURS))
    added = [round(mine - empty, 1) for mine, empty in zip(ours, nothing, strict=True)]
    report: dict[str, Any] = {
        "conditions": conditions(),
        "milliseconds": statistics.median(added),
        "quartiles": [statistics.quantiles(added)[i] for i in (0, 2)],
        "target": TARGET,
        "modules": slowest_modules(8),
    }
    print(f"{report['milliseconds']:.1f} ms, quartiles {report['quartiles']}, target {TARGET} ms")
    for name, own in report["modules"]:
        print(f"  {name:<50}{own:6.1f} ms")
    if args.json:
        write(args.json, report)


if __name__ == "__main__":
    main()
