"""Records on which versions of Python and torch the first steps pass, and which extras can be installed.

    python -m tools.versions --wheel dist/*.whl --python python3.10 python3.13 --torch 2.11 2.15
    python -m tools.versions --wheel dist/*.whl --extras

installs the wheel into a new environment for each pair and runs ``tools/first_steps.py`` there, or installs each extra
by itself and all of them together. It writes docs/source/versions.json after each environment, so an interrupted run
continues where it ended. It needs uv, which shares packages between the environments.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "source" / "versions.json"
# They pin older versions of packages that others need.
SEPARATE = ("litert", "nncf")


def record() -> dict[str, dict[str, dict[str, object]]]:
    """The recorded pairs and extras."""
    empty: dict[str, dict[str, dict[str, object]]] = {"pairs": {}, "extras": {}}
    return empty | json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else empty


def save(recorded: Mapping[str, Mapping[str, object]]) -> None:
    text = json.dumps({name: dict(sorted(part.items())) for name, part in recorded.items()}, indent=1)
    temporary = RECORD.with_suffix(".json.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(RECORD)


def extras_of(wheel: Path) -> list[str]:
    (folder,) = (path for path in ZipPath(wheel).iterdir() if path.name.endswith(".dist-info"))
    distribution: Distribution = PathDistribution(folder)  # type: ignore[arg-type]
    return sorted(distribution.metadata.get_all("Provides-Extra") or [])


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)


def uv(*command: str | Path) -> str:
    """Runs a command of uv, and returns its hint or its last words if it fails."""
    result = run(sys.executable, "-m", "uv", *command)
    text = " ".join((result.stdout + result.stderr).split())
    return "" if result.returncode == 0 else text.partition("hint: ")[2] or text[-300:]


def install(python: str, folder: Path, requirements: Sequence[str]) -> str:
    """Makes an environment in ``folder`` with these packages; an error text if that fails."""
    return uv("venv", "--quiet", "--python", python, folder) or uv(
        "pip", "install", "--quiet", "--python", folder / "bin" / "python", *requirements
    )


def try_pair(python: str, torch: str, wheel: Path) -> dict[str, object]:
    """The versions and outcomes of one environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "venv"
        if error := install(python, folder, [str(wheel), f"torch=={torch}.*", "torchvision"]):
            return {"steps": {"install": error}}
        steps = run(folder / "bin" / "python", ROOT / "tools" / "first_steps.py", ROOT / "README.md", "--json")
        return dict(json.loads(steps.stdout)) if steps.stdout else {"steps": {"import": steps.stderr[-300:]}}


def try_extras(python: str, names: Sequence[str], wheel: Path) -> dict[str, object]:
    """Whether these extras can be installed without conflicts, and the package can be imported beside them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "venv"
        binary = folder / "bin" / "python"
        error = install(python, folder, [f"{wheel}[{','.join(names)}]"]) or uv("pip", "check", "--python", binary)
        if not error:
            imported = run(binary, "-c", "import torchvision_layers.quantized, torchvision_layers.deploy")
            error = imported.stderr[-300:] if imported.returncode else ""
        return {"outcome": error or "passed"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel to install")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="paths of Pythons; default: this one")
    parser.add_argument("--torch", nargs="+", default=[], help="minor versions of torch, such as 2.15")
    parser.add_argument("--extras", action="store_true", help="install each extra, with the first Python")
    parser.add_argument("--again", action="store_true", help="try recorded environments again")
    args = parser.parse_args(argv)
    wheel = args.wheel.resolve()
    recorded = record()
    tasks = [("pairs", python, [torch]) for python in args.python for torch in args.torch]
    if args.extras:
        extras = extras_of(wheel)
        together = [name for name in extras if name not in SEPARATE]
        tasks += [("extras", args.python[0], names) for names in ([[name] for name in extras] + [together])]
    failed = 0
    for part, python, names in tasks:
        minor = run(python, "-c", "import sys; print('.'.join(map(str, sys.version_info[:2])))").stdout.strip()
        key = f"{minor}, {names[0]}" if part == "pairs" else names[0] if len(names) == 1 else "all together"
        if key not in recorded[part] or args.again:
            attempt = try_pair(python, names[0], wheel) if part == "pairs" else try_extras(python, names, wheel)
            recorded[part][key] = attempt
            save(recorded)
        outcomes = recorded[part][key].get("steps", {"install": recorded[part][key].get("outcome")})
        assert isinstance(outcomes, dict)
        failed += any(outcome != "passed" for outcome in outcomes.values())
        print(key, outcomes, flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
