"""Command lines: recipes, torchvision's short options, the command that a run prints, rules, and exit statuses."""

import io
import math
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from common import cli, distributed
from common.runs.signals import Stopped
from common.settings import FIXED, TrainingSettings

from ._support import SCRIPTS

OPTIONS = [
    ["--model", "resnet50", "--amp", "--compile", "--lr", "1e-05", "--clip-grad-norm", "1", "--resume", "auto"],
    ["--data-path", 'my photos/it\'s "one"/ü漢 #1', "--output-dir=-out", "--seed", "7", "--amp", "bfloat16"],
    ["--weights", "$HOME/*.pth", "--output-dir", "a b", "--model-ema", "--lr-warmup-epochs", "2"],
]


@pytest.mark.parametrize("flags", OPTIONS)
def test_command_repeats_the_run(flags: list[str]) -> None:
    args = cli.training_parser().parse_args(flags)
    python, script, *argv = shlex.split(cli.training_command(vars(args)))
    assert (python, Path(script).resolve()) == ("python", SCRIPTS / "train.py")
    assert cli.training_parser().parse_args(argv) == args


def test_command_depends_on_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = cli.training_parser().parse_args([])
    for folder, script in ((SCRIPTS, "train.py"), (tmp_path, str(SCRIPTS / "train.py"))):
        monkeypatch.chdir(folder)
        assert shlex.split(cli.training_command(vars(args))) == ["python", script, "--model", "resnet18"]


@pytest.mark.parametrize(("size", "local_size", "argv"), [(1, 1, ""), (4, 4, ""), (8, 4, "--nnodes 2 "), (4, None, "")])
def test_command_starts_as_many_processes(
    monkeypatch: pytest.MonkeyPatch, size: int, local_size: int | None, argv: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "world_size", lambda: size)
    if local_size is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_size))
    command = cli.training_command(vars(cli.training_parser().parse_args([])))
    assert command.startswith(f"torchrun {argv}--nproc-per-node {local_size or size} ")


@pytest.mark.parametrize("flags", OPTIONS)
@pytest.mark.parametrize("form", ["{}={}", "{} {}", "{}   {}   # why", "{}\n{}"])
def test_recipe_equals_its_options(tmp_path: Path, flags: list[str], form: str) -> None:
    args = cli.training_parser().parse_args(flags)
    recipe = tmp_path / "my recipe.txt"
    lines = ["# a comment = --epochs=99", "", "  "]
    for name, value in vars(args).items():
        if value is True:
            lines.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            line = form if not str(value).startswith("-") and " #" not in str(value) else "{}={}"
            lines.append(line.format(f"--{name.replace('_', '-')}", value))
    recipe.write_text("\n".join(lines), encoding="utf-8")
    if " #" in str(args.data_path):  # begins a comment
        args.data_path = args.data_path.partition(" #")[0]
    assert cli.training_parser().parse_args([f"@{recipe}"]) == args


def test_number_sign_in_a_path_is_no_comment(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text("--data-path=photos/#1  # the first\n")
    assert cli.training_parser().parse_args([f"@{tmp_path / 'recipe.txt'}"]).data_path == "photos/#1"


def test_short_options_of_torchvision() -> None:
    args = cli.training_parser().parse_args(["-b", "8", "-j", "2", "--wd", "0.25"])
    assert (args.batch_size, args.workers, args.weight_decay) == (8, 2, 0.25)


def test_options_that_exclude_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for extra, message in (
        (["--channels-last"], "channels_last cannot be combined with fsdp"),
        (["--amp"], "bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            cli.check_training_options(cli.training_parser().parse_args(["--fsdp", *extra]))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("epochs", 1, 0),
        ("batch_size", 2, 1),
        ("lr", 0.1, 0.0),
        ("lr", 1, math.nan),
        ("lr", 1, math.inf),
        ("momentum", 0, 1.0),
        ("weight_decay", 0, -1),
        ("label_smoothing", 0, 1.0),
        ("workers", 0, -1),
        ("seed", 0, -1),
    ],
)
def test_rules_for_numbers(name, good, bad):
    cli.check_numbers(Namespace(**{name: good}, model="resnet18"))
    with pytest.raises(ValueError, match=f"^{name} must be .*got {bad}"):
        cli.check_numbers(Namespace(**{name: bad}))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("bad argument"), 2, "error: bad argument\n"),
        (OSError("no such folder"), 2, "error: no such folder\n"),
        (FloatingPointError("the loss is nan"), 2, "error: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped("resume with: ...", 15), 143, "resume with: ...\n"),
    ],
)
def test_user_errors_print_one_line(capsys, error, status, line):
    def main(args):
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run_as_script(main, Namespace())
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run_as_script(lambda args: 1 / 0, Namespace())


def test_characters_that_stdout_lacks_are_escaped(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    cli.run_as_script(lambda args: print(f"{args.name} is done"), Namespace(name="\u00fc\udcff"))
    output.flush()
    assert output.buffer.getvalue() == b"\\xfc\\udcff is done\n"


def test_settings_cover_all_options() -> None:
    args = cli.training_parser().parse_args(["--lr", "0.5", "--output-dir", "runs"])
    settings = TrainingSettings.from_args(args)
    assert settings.values == {name: value for name, value in vars(args).items() if name != "test_only"}
    assert set(FIXED) < settings.values.keys()
    assert settings.optimization.lr == 0.5
