import io
import math
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
import utils
from interruption import Stopped


def draw_numbers() -> tuple:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_seed_and_an_epoch_fix_all_generators():
    drawn = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        utils.seed_everything(seed, epoch)
        drawn[seed, epoch] = draw_numbers()
        utils.seed_everything(seed, epoch)
        assert draw_numbers() == drawn[seed, epoch]
    for numbers in zip(*drawn.values(), strict=True):
        assert len(set(numbers)) == 4


def test_generators_go_back_to_where_they_were(tmp_path):
    torch.save(utils.generators(), tmp_path / "generators.pth")
    drawn = draw_numbers()
    utils.restore_generators(torch.load(tmp_path / "generators.pth", weights_only=True))
    assert draw_numbers() == drawn != draw_numbers()


def test_deterministic_algorithms_are_asked_for_inside_only():
    @utils.deterministic_algorithms()
    def fail():
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_what_the_output_cannot_show_is_spelt(monkeypatch):
    """A name of a file in letters that a console does not have, or in none, ends no run."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(utils.sys, "stdout", output)
    utils.run_as_script(lambda args: print(f"{args.name} is done"), Namespace(name="\u00fc\udcff"))
    output.flush()
    assert output.buffer.getvalue() == b"\\xfc\\udcff is done\n"


def test_output_dir_is_created_and_left_empty(tmp_path):
    path = utils.check_output_dir(tmp_path / "a" / "b")
    assert path.is_dir()
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "folder"])
def test_output_dir_that_cannot_be_written(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(OSError, match=r"output_dir .*cannot be written to") as caught:
        utils.check_output_dir(file / below)
    assert str(file / below) in str(caught.value)
    assert file.read_text() == "kept"


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
def test_numbers_are_checked(name, good, bad):
    utils.check_numbers(Namespace(**{name: good}, model="resnet18"))
    with pytest.raises(ValueError, match=f"^{name} must be .*got {bad}"):
        utils.check_numbers(Namespace(**{name: bad}))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("bad argument"), 2, "error: bad argument\n"),
        (OSError("no such folder"), 2, "error: no such folder\n"),
        (FloatingPointError("the loss is nan"), 2, "error: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped("to go on: ...", 15), 143, "to go on: ...\n"),
    ],
)
def test_mistakes_of_the_user_end_a_script_with_one_line(capsys, error, status, line):
    def main(args):
        raise error

    with pytest.raises(SystemExit) as caught:
        utils.run_as_script(main, Namespace())
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_mistakes_in_the_code_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        utils.run_as_script(lambda args: 1 / 0, Namespace())
