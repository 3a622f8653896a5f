"""Imports the scripts once and forks a process for each run of train.py, so that killing many runs is cheap.

Each line of stdin is a JSON list of runs, which start together. Each line of stdout lists their exit statuses and
processor seconds. Keys of a run:

- ``arguments`` of train.py, and the file ``output`` for stdout and stderr;
- ``environment``: environment variables;
- ``seconds``: processor seconds after which the run is killed;
- ``signal`` and ``once``: a signal to send as soon as a file exists;
- ``largest_file``: limit of the size of a file in bytes, which simulates a full disk;
- ``dies_at``: ``[function, number]``, a function of ``os`` and the number of the call at which it kills the run;
- ``in_double``: whether to compute in float64.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "references" / "classification"))

import common.training.run
import torch
import train
from common.cli import run_as_script
from common.data.loading import ImageLoader


def run(options: dict) -> None:
    """Runs train.py in this process and exits."""
    with open(options["output"], "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(options.get("environment", {}))
    torch.set_num_threads(1)
    if "largest_file" in options:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["largest_file"], resource.RLIM_INFINITY))
    if "dies_at" in options:
        die_at(*options["dies_at"])
    if options.get("in_double"):
        compute_in_double()
    status = 1
    try:
        run_as_script(train.main, train.get_parser().parse_args(options["arguments"]))
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def die_at(name: str, number: int) -> None:
    function, calls = getattr(os, name), 0

    def call(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    setattr(os, name, call)


def compute_in_double() -> None:
    run, batches = common.training.run, ImageLoader.batches
    build = run.build_model

    def build_in_double(*args: object, **options: object) -> torch.nn.Module:
        return build(*args, **options).double()

    def batches_in_double(self: ImageLoader, *args: int) -> object:
        for batch in batches(self, *args):
            yield batch if batch.images is None else batch._replace(images=batch.images.double())

    run.build_model, ImageLoader.batches = build_in_double, batches_in_double


def start(options: dict) -> int:
    child = os.fork()
    if child == 0:
        run(options)
    return child


def main() -> None:
    for line in sys.stdin:
        runs = json.loads(line)
        children = [start(options) for options in runs]
        for child, options in zip(children, runs, strict=True):
            if "seconds" in options:
                kill_after(child, options["seconds"])
            if "signal" in options:
                while not Path(options["once"]).exists():
                    time.sleep(0.002)
                os.kill(child, options["signal"])
        print(json.dumps([wait(child) for child in children]), flush=True)


def kill_after(child: int, seconds: float) -> None:
    """Kills after processor time, since on a busy machine wall time does not say how far a run is."""
    while True:
        state, *_, user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[:13]
        if state == "Z":  # already ended
            return
        if (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") >= seconds:
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.002)


def wait(child: int) -> tuple[int, float]:
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
