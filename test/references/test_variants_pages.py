"""The pages of the variants: the committed ones match their results, and the results are plausible."""

import math
import re
from argparse import Namespace
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
import variants
from common.tables import variants as pages
from common.tables.variants import BEGIN, END, Pages
from common.tables.variants_picture import draw_variants, plot_variants
from variants import Run

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = Pages(ROOT / "docs" / "source", ROOT / "references" / "classification" / "README.md")
RESULTS = pages.load_results(COMMITTED.results)
RECIPES = {path.stem: path for path in variants.find_recipes(variants.SCRIPTS / "recipes")}


def parse(*argv: str) -> Namespace:
    return variants.get_parser().parse_args(argv)


def test_committed_pages_match_the_results() -> None:
    assert COMMITTED.page.read_text(encoding="utf-8") == pages.page(RESULTS)
    text = COMMITTED.readme.read_text(encoding="utf-8")
    assert text == pages.with_table(COMMITTED.readme, pages.markdown(RESULTS))


def test_committed_picture_matches_the_results(tmp_path: Path) -> None:
    """Other versions of matplotlib may write another file with the same texts and positions."""
    plot_variants(RESULTS, tmp_path / "variants.svg")
    texts, positions = read_picture(COMMITTED.picture)
    new_texts, new_positions = read_picture(tmp_path / "variants.svg")
    assert texts == new_texts
    assert positions.keys() == new_positions.keys() == set(RESULTS["models"])
    for name, position in positions.items():
        assert position == pytest.approx(new_positions[name], abs=0.5)


def read_picture(path: Path) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """All texts, and the positions of the points."""
    text = path.read_text(encoding="utf-8")
    positions = re.findall(r'<g id="point-(\w+)">.*?<use [^>]*?x="([\d.]+)" y="([\d.]+)"', text, re.DOTALL)
    return re.findall(r"<!-- (.+?) -->", text), {name: (float(x), float(y)) for name, x, y in positions}


def test_picture_shows_the_figures() -> None:
    """Points to the right cost more and higher points are more accurate; points of similar cost are moved apart."""
    _, positions = read_picture(COMMITTED.picture)
    models = RESULTS["models"]
    for one in models:
        for other in models:
            (x, y), (other_x, other_y) = positions[one], positions[other]
            if models[one]["multiply_adds"] > 1.3 * models[other]["multiply_adds"]:
                assert x > other_x
            # Means of one and of three seeds may differ in the last bit.
            if mean(models[one]["accuracy"]) > mean(models[other]["accuracy"]) + 1e-9:
                assert y < other_y


def test_points_are_numbered_and_distinct() -> None:
    figure = draw_variants(RESULTS)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    numbers = {text.get_text(): text.get_position() for text in axes.texts}
    assert labels == [f"{number} {name}" for number, name in enumerate(by_cost(RESULTS), start=1)]
    assert list(numbers) == [label.split()[0] for label in labels]
    points = axes.transData.transform(list(numbers.values()))
    assert min(math.dist(*pair) for pair in combinations(points, 2)) > 6  # half covered: the number can still be read


def by_cost(results: dict) -> list[str]:
    return sorted(results["models"], key=lambda name: results["models"][name]["multiply_adds"])


def test_results_are_of_the_current_recipes() -> None:
    assert {name: entry["recipe"] for name, entry in RESULTS["models"].items()} == {
        name: variants.recipe_arguments(path) for name, path in RECIPES.items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_match_the_models(name: str) -> None:
    entry = RESULTS["models"][name]
    settings = Run(RECIPES[name], 0, Path()).settings()
    size = variants.model_size(variants.build(settings, [""] * 10), settings.data.image_size)
    assert size == (entry["parameters"], entry["multiply_adds"])


@pytest.mark.parametrize("name", RECIPES)
def test_figures_are_plausible(name: str) -> None:
    """Each seed has an accuracy, which is a whole number of test images; int8 has accuracies or a problem."""
    entry = RESULTS["models"][name]
    assert RESULTS["seeds"] == 3
    assert len(entry["accuracy"]) in (1, RESULTS["seeds"])
    assert len(entry["int8"]) == (0 if entry["problem"] else len(entry["accuracy"]))
    for value in entry["accuracy"] + entry["int8"]:
        images = value * RESULTS["test_images"]
        assert images == pytest.approx(round(images), abs=1e-9)
    assert RESULTS["test_images"] == 364
    assert entry["step"] > 0
    assert (entry["step"] == 1) == (name == "resnet18")


def test_pages_have_no_paths_of_a_machine() -> None:
    for path in (COMMITTED.results, COMMITTED.page):
        assert not re.search(r"/(home|tmp|root|work|Users)\b", path.read_text(encoding="utf-8"))


RESULT = {
    "recipe": "--model=resnet18 --epochs=12",
    "parameters": 1234567,
    "multiply_adds": 2500000,
    "accuracy": [0.95, 0.97, 0.99],
    "int8": [0.94, 0.95, 0.96],
    "problem": "",
    "step": 1.0,
}
WITHOUT_INT8 = {**RESULT, "multiply_adds": 1000000, "int8": [], "problem": "attention has no twin", "step": 2.345}
SMALL_RESULTS = {
    "command": "python variants.py --seeds 3",
    "machine": "two cores",
    "torch": "2.15.0",
    "seeds": 3,
    "rounds": 5,
    "test_images": 200,
    "models": {"resnet18": RESULT, "resnet26_sasa": WITHOUT_INT8},
}


def test_table() -> None:
    """Mean, lowest and highest accuracy by hand; the cheapest model first; a footnote for a model without int8."""
    *_, table, note = pages.markdown(SMALL_RESULTS).split("\n\n")
    assert table.splitlines()[2:] == [
        "| resnet26_sasa | 1,234,567 | 1.00 M | 97.00 %, 95.00–99.00 | – (1) | 12 | 2.35 |",
        "| resnet18 | 1,234,567 | 2.50 M | 97.00 %, 95.00–99.00 | 95.00 % | 12 | 1.00 |",
    ]
    assert note == "(1) resnet26_sasa has no int8 form: attention has no twin"
    assert "Two cores, torch 2.15.0" in pages.markdown(SMALL_RESULTS)
    assert "one image is 0.50 points" in " ".join(pages.page(SMALL_RESULTS).split())


def test_table_is_written_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    pages.write_results(tmp_path / "variants.json", SMALL_RESULTS)
    variants.main(parse("--render", "--docs", str(tmp_path), "--readme", str(readme)))
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"above\n{BEGIN}\n`python variants.py --seeds 3`\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "old" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "variants.json", "variants.rst", "variants.svg"}
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    variants.main(parse("--render", "--docs", str(tmp_path), "--readme", str(readme)))
    assert contents == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("text", ["none", BEGIN, END, f"{END} {BEGIN}"])
def test_nothing_is_written_without_markers(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    pages.write_results(tmp_path / "variants.json", SMALL_RESULTS)
    with pytest.raises(ValueError, match=r"README.md must hold <!-- variants: begin --> and, after it"):
        pages.write_pages(Pages(tmp_path, tmp_path / "README.md"))
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "variants.json"}


def test_bad_results(tmp_path: Path) -> None:
    path = tmp_path / "variants.json"
    with pytest.raises(ValueError, match=r"variants.json does not exist; create it: python"):
        pages.load_results(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"variants.json is not JSON"):
        pages.load_results(path)
