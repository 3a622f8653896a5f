"""Programs in new processes that start fast: forks of an interpreter that has imported only torch and torchvision.

They can check what imports this package or torchao, and block both. Run as a script, this file is the interpreter.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

__all__ = ["Interpreter"]


class Interpreter:
    """An interpreter that starts when the first program runs, and forks a process for each."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, program: str | Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in its own process, and return its exit status and what it prints.

        Args:
            program: the path of a script, or the code of a program, as for ``python -c``.
            arguments: of the program.
            cwd: its working directory. Default: the current one.
        """
        command = [str(program)] if isinstance(program, Path) else ["-c", program]
        if not hasattr(os, "fork"):
            return subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, cwd=cwd)
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps([[*command, *arguments], str(cwd or Path.cwd())])}\n")
        self._process.stdin.flush()
        return subprocess.CompletedProcess(command, *json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def serve() -> None:
    """Read command lines and working directories from stdin, and print exit statuses and outputs."""
    sys.path.pop(0)  # this folder
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                os._exit(execute(*json.loads(line)))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            errors.seek(0)
            print(json.dumps([status, output.read(), errors.read()]), flush=True)


def execute(command: list[str], cwd: str) -> int:
    """Run a program as the interpreter does, and return its exit status."""
    os.chdir(cwd)
    try:
        if command[0] == "-c":
            sys.argv, sys.path[:0] = ["-c", *command[2:]], [""]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(command[1], vars(main))
        else:
            sys.argv, sys.path[:0] = command, [str(Path(command[0]).parent)]
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve()
