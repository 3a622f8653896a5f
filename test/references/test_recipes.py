"""The recipes: one file of arguments a model."""

from pathlib import Path

import data
import loading
import pytest
import torch
import train
from data import Images
from models import MODELS, build_model

from ._support import SCRIPTS

RECIPES = sorted((SCRIPTS / "recipes").glob("*.txt"))
FLAGS = {
    "model", "dataset", "width-mult", "depth-mult", "image-size", "batch-size", "epochs", "lr", "momentum",
    "weight-decay", "label-smoothing", "opt", "clip-grad-norm",
}  # fmt: skip


def test_every_model_but_two_variants_has_one() -> None:
    assert {recipe.stem for recipe in RECIPES} == set(MODELS) - {"mobilenet_v2_half", "se_resnet18"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_makes_its_model(recipe: Path) -> None:
    """Each line is a comment or ``--flag=value``, and an image of that size goes through a model of that size."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    given = [line.removeprefix("--").split("=") for line in lines if not line.startswith("#")]
    assert all(line.startswith(("--", "# ")) for line in lines)
    arguments = dict(given)  # each has two sides
    assert len(arguments) == len(given)
    assert arguments.keys() <= FLAGS
    assert (arguments["model"], arguments["dataset"]) == (recipe.stem, "digits")
    model = build_model(recipe.stem, 10, float(arguments["width-mult"]), float(arguments["depth-mult"])).eval()
    size = int(arguments["image-size"])
    with torch.no_grad():
        assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_trains(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps and a test through the script's own entry, on eight images and four."""
    monkeypatch.setattr(loading, "load_datasets", few_images)
    words = [f"@{recipe}", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--output-dir", str(tmp_path)]
    args = train.get_parser().parse_args(words)
    found = train.main(args)
    (entry,) = found["history"]
    assert 0 < entry["train_loss"] < 20
    assert found["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    saved = torch.load(tmp_path / "model.pth", weights_only=True)
    assert saved["model_arguments"] == {"width_mult": args.width_mult, "depth_mult": args.depth_mult}
    assert sum(value.numel() for value in saved["model"].values()) == sum(
        value.numel() for value in build_model(recipe.stem, 10, args.width_mult, args.depth_mult).state_dict().values()
    )


def few_images(*given: object, **augmentation: object) -> tuple[Images, Images, list[str]]:
    """The digits, cut to the first ones."""
    *sets, classes = data.load_datasets(*given, **augmentation)
    for images, count in zip(sets, (8, 4), strict=True):
        images.sources, images.labels = images.sources[:count], images.labels[:count]
    return *sets, classes
