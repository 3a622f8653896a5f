"""The recipes: one file of arguments per model."""

from pathlib import Path

import pytest
import torch
import train
from common.data import datasets, loading
from common.data.datasets import Images
from models import MODELS, build_model

from ._support import SCRIPTS

RECIPES = sorted((SCRIPTS / "recipes").glob("*.txt"))
OPTIONS = {
    "model", "dataset", "width-mult", "depth-mult", "image-size", "batch-size", "epochs", "lr", "momentum",
    "weight-decay", "label-smoothing", "opt", "clip-grad-norm",
}  # fmt: skip


def test_all_models_except_variants_have_a_recipe() -> None:
    without = {"mobilenet_v2_half", "se_resnet18", *(f"efficientnet_lite{i}" for i in range(5))}
    assert {recipe.stem for recipe in RECIPES} == set(MODELS) - without


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_builds_its_model(recipe: Path) -> None:
    """Each line is a comment or ``--option=value``, and the model accepts images of the size of the recipe."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    pairs = [line.removeprefix("--").split("=") for line in lines if not line.startswith("#")]
    assert all(line.startswith(("--", "# ")) for line in lines)
    arguments = dict(pairs)
    assert len(arguments) == len(pairs)
    assert arguments.keys() <= OPTIONS
    assert (arguments["model"], arguments["dataset"]) == (recipe.stem, "digits")
    model = build_model(recipe.stem, 10, float(arguments["width-mult"]), float(arguments["depth-mult"])).eval()
    size = int(arguments["image-size"])
    with torch.no_grad():
        assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_trains(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on eight images and a test on four, with the main function of the script."""
    monkeypatch.setattr(loading, "load_datasets", few_images)
    argv = [f"@{recipe}", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--output-dir", str(tmp_path)]
    args = train.get_parser().parse_args(argv)
    result = train.main(args)
    (entry,) = result["history"]
    assert 0 < entry["train_loss"] < 20
    assert result["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    checkpoint = torch.load(tmp_path / "model.pth", weights_only=True)
    assert checkpoint["model_arguments"] == {"width_mult": args.width_mult, "depth_mult": args.depth_mult}
    assert sum(value.numel() for value in checkpoint["model"].values()) == sum(
        value.numel() for value in build_model(recipe.stem, 10, args.width_mult, args.depth_mult).state_dict().values()
    )


def few_images(*args: object, **augmentation: object) -> tuple[Images, Images, list[str]]:
    """The first of the digits."""
    *sets, classes = datasets.load_datasets(*args, **augmentation)
    for images, count in zip(sets, (8, 4), strict=True):
        images.sources, images.labels = images.sources[:count], images.labels[:count]
    return *sets, classes
