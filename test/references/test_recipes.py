"""The recipes: one file of arguments a model."""

from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS
from models import MODELS, build_model

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
