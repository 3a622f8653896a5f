"""Where the scripts are, and runs of train.py beside the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "references" / "classification"


class Host:
    """Runs of train.py in processes of their own, which ``host.py`` forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("host.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *runs: dict) -> list[tuple[int, float]]:
        """The exit status, and the seconds of computing, of each of the runs, which start together."""
        self.process.stdin.write(f"{json.dumps(runs)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
