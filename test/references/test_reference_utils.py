import math
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
import utils
from PIL import Image
from torch import nn


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


def test_deterministic_algorithms_are_asked_for_inside_only():
    @utils.deterministic_algorithms()
    def fail():
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, error):
    path = tmp_path / "curves.png"
    path.write_text("earlier")

    def write_half():
        with utils.atomic_path(path) as temporary:
            temporary.write_text("half")
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    with utils.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


class Unsavable:
    def __reduce__(self):
        raise RuntimeError("no space")


def test_an_interrupted_save_leaves_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pth"
    utils.save_atomically({"a": torch.ones(3)}, path)
    with pytest.raises(RuntimeError, match="no space"):
        utils.save_atomically({"a": torch.zeros(3), "b": Unsavable()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


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


def checkpoint_of(model: nn.Module) -> dict:
    return {"model": model.state_dict(), "model_name": "resnet18", "num_classes": 10, "classes": list("0123456789")}


def test_a_checkpoint_comes_back(tmp_path):
    model = nn.Linear(2, 3)
    utils.save_atomically(checkpoint_of(model), tmp_path / "model.pth")
    found = utils.load_checkpoint(tmp_path / "model.pth", "resnet18", 10)
    assert torch.equal(found["model"]["weight"], model.weight)


def test_a_checkpoint_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pth"):
        utils.load_checkpoint(tmp_path / "model.pth", "resnet18", 10)


@pytest.mark.parametrize("kept", [0, 0.001, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_short(tmp_path, kept):
    path = tmp_path / "model.pth"
    utils.save_atomically(checkpoint_of(nn.Linear(100, 100)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pth is not a checkpoint, or a damaged one") as caught:
        utils.load_checkpoint(path, "resnet18", 10)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoints(tmp_path):
    text, picture, code, tensors = (tmp_path / name for name in ("text", "picture.png", "code.pth", "tensors.pth"))
    text.write_text("not a checkpoint")
    Image.new("RGB", (8, 8)).save(picture)
    torch.save(nn.Linear(2, 2), code)  # a pickled object, which could run code of its own when loaded
    for path in (text, picture, code):
        with pytest.raises(ValueError, match=f"{path.name} is not a checkpoint, or a damaged one"):
            utils.load_checkpoint(path, "resnet18", 10)
    for foreign in ([torch.ones(2)], nn.Linear(2, 2).state_dict()):
        torch.save(foreign, tensors)
        with pytest.raises(ValueError, match=r"tensors.pth is not a checkpoint of these scripts"):
            utils.load_checkpoint(tensors, "resnet18", 10)


@pytest.mark.parametrize("wanted", [("resnet50", 10), ("resnet18", 2)])
def test_a_checkpoint_of_another_model(tmp_path, wanted):
    utils.save_atomically(checkpoint_of(nn.Linear(2, 2)), tmp_path / "model.pth")
    message = f"model.pth is a checkpoint of resnet18 with 10 classes, not of {wanted[0]} with {wanted[1]}"
    with pytest.raises(ValueError, match=message):
        utils.load_checkpoint(tmp_path / "model.pth", *wanted)


class Batches(list):
    """Stands in for a loader."""

    dataset = range(3)


def test_evaluation():
    # Each image is its own output; the first is wrong, the last batch is smaller.
    outputs = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    model = nn.Identity().train()
    found = utils.evaluate(model, Batches([(outputs[:2], labels[:2]), (outputs[2:], labels[2:])]))
    assert found.accuracy == 2 / 3
    assert found.predictions.tolist() == [1, 1, 0]
    assert found.labels.tolist() == [0, 1, 0]
    losses = [math.log(1 + math.exp(1)), math.log(1 + math.exp(-3)), math.log(1 + math.exp(-2))]
    assert found.loss == pytest.approx(sum(losses) / 3)
    assert not model.training


def test_evaluation_of_nothing():
    with pytest.raises(ValueError, match="none of the test images can be read"):
        utils.evaluate(nn.Identity(), Batches([]))


def test_curves_are_a_picture(tmp_path):
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    history = [{"epoch": epoch, **dict.fromkeys(names, 1 / epoch)} for epoch in (1, 2, 3)]
    utils.plot_curves(history, tmp_path / "curves.png", title="a title")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # the two lines
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


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
