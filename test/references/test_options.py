"""The command line: recipes, what torchvision's script understands, and the command that a run prints."""

import shlex
from pathlib import Path

import distributed
import options
import pytest

from ._support import SCRIPTS

FLAGS = [
    ["--model", "resnet50", "--amp", "--compile", "--lr", "1e-05", "--clip-grad-norm", "1", "--resume", "auto"],
    ["--data-path", 'my photos/it\'s "one"/ü漢 #1', "--output-dir=-out", "--seed", "7", "--amp", "bfloat16"],
    ["--weights", "$HOME/*.pth", "--output-dir", "a b", "--model-ema", "--lr-warmup-epochs", "2"],
]


@pytest.mark.parametrize("flags", FLAGS)
def test_the_printed_command_gives_the_same_run(flags: list[str]) -> None:
    args = options.get_parser().parse_args(flags)
    python, script, *words = shlex.split(options.command_of(args))
    assert (python, Path(script).resolve()) == ("python", SCRIPTS / "train.py")
    assert options.get_parser().parse_args(words) == args


def test_the_printed_command_fits_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = options.get_parser().parse_args([])
    for folder, script in ((SCRIPTS, "train.py"), (tmp_path, str(SCRIPTS / "train.py"))):
        monkeypatch.chdir(folder)
        assert shlex.split(options.command_of(args)) == ["python", script, "--model", "resnet18"]


@pytest.mark.parametrize(("count", "here", "words"), [(1, 1, ""), (4, 4, ""), (8, 4, "--nnodes 2 "), (4, None, "")])
def test_the_printed_command_starts_as_many_processes(
    monkeypatch: pytest.MonkeyPatch, count: int, here: int | None, words: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "count", lambda: count)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    command = options.command_of(options.get_parser().parse_args([]))
    assert command.startswith(f"torchrun {words}--nproc-per-node {here or count} ")


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("form", ["{}={}", "{} {}", "{}   {}   # why", "{}\n{}"])
def test_a_recipe_is_the_same_as_its_flags(tmp_path: Path, flags: list[str], form: str) -> None:
    args = options.get_parser().parse_args(flags)
    recipe = tmp_path / "my recipe.txt"
    lines = ["# a comment = --epochs=99", "", "  "]
    for name, value in vars(args).items():
        if value is True:
            lines.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            usual = form if not str(value).startswith("-") and " #" not in str(value) else "{}={}"
            lines.append(usual.format(f"--{name.replace('_', '-')}", value))
    recipe.write_text("\n".join(lines), encoding="utf-8")
    if " #" in str(args.data_path):  # which begins a comment
        args.data_path = args.data_path.partition(" #")[0]
    assert options.get_parser().parse_args([f"@{recipe}"]) == args


def test_a_number_sign_in_a_path_is_no_comment(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text("--data-path=photos/#1  # the first\n")
    assert options.get_parser().parse_args([f"@{tmp_path / 'recipe.txt'}"]).data_path == "photos/#1"


def test_the_short_flags_of_torchvision_s_script() -> None:
    args = options.get_parser().parse_args(["-b", "8", "-j", "2", "--wd", "0.25"])
    assert (args.batch_size, args.workers, args.weight_decay) == (8, 2, 0.25)


def test_options_that_do_not_go_with_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for extra, message in ((["--channels-last"], "channels_last cannot be given with fsdp"), (["--amp"], "bfloat16")):
        with pytest.raises(ValueError, match=message):
            options.check_options(options.get_parser().parse_args(["--fsdp", *extra]))
