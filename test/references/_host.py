"""Imports the scripts once, and forks a process for each run that it is asked for: runs that can be killed cost little.

A line of JSON on stdin is a list of runs, which start together; a line on stdout has the exit status of each, and the
seconds it computed. A run has

- ``arguments`` of train.py, and the ``output`` it writes what it prints to;
- ``environment``: variables that are set;
- ``seconds``: after computing for so long it is killed;
- ``signal`` and ``once``: it is sent that signal as soon as the file exists;
- ``largest_file``: how many bytes a file may have, which stands in for what is left on a disk;
- ``dies_at``: ``[function, number]``, that call of a function of ``os`` kills it;
- ``in_double``: computes in float64.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "references" / "classification"))

import loading
import torch
import train
import utils


def run(wanted: dict) -> None:
    """In a process of its own, which this ends."""
    with open(wanted["output"], "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(wanted.get("environment", {}))
    torch.set_num_threads(1)
    if "largest_file" in wanted:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["largest_file"], resource.RLIM_INFINITY))
    if "dies_at" in wanted:
        die_at(*wanted["dies_at"])
    if wanted.get("in_double"):
        compute_in_double()
    status = 1
    try:
        utils.run_as_script(train.main, train.get_parser().parse_args(wanted["arguments"]))
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
    build, batches = train.build_model, loading.ImageLoader.batches

    def build_in_double(*args: object, **options: object) -> torch.nn.Module:
        return build(*args, **options).double()

    def batches_in_double(self: loading.ImageLoader, *args: int) -> object:
        for batch in batches(self, *args):
            yield batch if batch.images is None else batch._replace(images=batch.images.double())

    train.build_model, loading.ImageLoader.batches = build_in_double, batches_in_double


def start(wanted: dict) -> int:
    child = os.fork()
    if child == 0:
        run(wanted)
    return child


def main() -> None:
    for line in sys.stdin:
        runs = json.loads(line)
        children = [start(wanted) for wanted in runs]
        for child, wanted in zip(children, runs, strict=True):
            if "seconds" in wanted:
                kill_after(child, wanted["seconds"])
            if "signal" in wanted:
                while not Path(wanted["once"]).exists():
                    time.sleep(0.002)
                os.kill(child, wanted["signal"])
        print(json.dumps([end_of(child) for child in children]), flush=True)


def kill_after(child: int, seconds: float) -> None:
    """Waits for processor time, not the clock's, of which a busy machine gives more or less of it."""
    while True:
        state, *_, user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[:13]
        if state == "Z":  # it has ended before
            return
        if (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") >= seconds:
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.002)


def end_of(child: int) -> tuple[int, float]:
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
