"""The pages of the variants: what is committed is what its results give, and the results are possible."""

import re
from argparse import Namespace
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
import variants
import variants_pages
from matplotlib.transforms import Bbox
from variants import Run
from variants_pages import BEGIN, END, Pages
from variants_picture import draw_variants, plot_variants

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = Pages(ROOT / "docs" / "source", ROOT / "references" / "classification" / "README.md")
RESULTS = variants_pages.load_results(COMMITTED.results)
RECIPES = {path.stem: path for path in variants.find_recipes(variants.SCRIPTS / "recipes")}


def arguments(*words: str) -> Namespace:
    return variants.get_parser().parse_args(words)


def test_the_pages_are_those_of_the_results() -> None:
    assert COMMITTED.page.read_text(encoding="utf-8") == variants_pages.page(RESULTS)
    text = COMMITTED.readme.read_text(encoding="utf-8")
    assert text == variants_pages.with_table(COMMITTED.readme, variants_pages.markdown(RESULTS))


def test_the_picture_is_that_of_the_results(tmp_path: Path) -> None:
    """Another matplotlib may write a file otherwise, but no text and no place may differ."""
    plot_variants(RESULTS, tmp_path / "variants.svg")
    texts, places = read_picture(COMMITTED.picture)
    new_texts, new_places = read_picture(tmp_path / "variants.svg")
    assert texts == new_texts
    assert set(RESULTS["models"]) <= set(texts)
    assert places.keys() == new_places.keys() == set(RESULTS["models"])
    for name, place in places.items():
        assert place == pytest.approx(new_places[name], abs=0.5)


def read_picture(path: Path) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """All texts, and where the points are."""
    text = path.read_text(encoding="utf-8")
    places = re.findall(r'<g id="point-(\w+)">.*?<use [^>]*?x="([\d.]+)" y="([\d.]+)"', text, re.DOTALL)
    return re.findall(r"<!-- (.+?) -->", text), {name: (float(x), float(y)) for name, x, y in places}


def test_the_picture_shows_the_figures() -> None:
    """Further right is dearer, further up is better; points of nearly the same x may stand aside a little."""
    _, places = read_picture(COMMITTED.picture)
    models = RESULTS["models"]
    for one in models:
        for other in models:
            (x, y), (other_x, other_y) = places[one], places[other]
            if models[one]["multiply_adds"] > 1.3 * models[other]["multiply_adds"]:
                assert x > other_x
            if mean(models[one]["accuracy"]) > mean(models[other]["accuracy"]):
                assert y < other_y


def test_labels_cover_nothing() -> None:
    """Neither another label nor a point nor a bar, and they end inside of the frame."""
    figure = draw_variants(RESULTS)
    (axes,) = figure.axes
    labels = [text.get_window_extent() for text in axes.texts]
    points = [line.get_window_extent() for line in axes.lines if str(line.get_gid()).startswith("point-")]
    bars = [line.get_window_extent() for line in axes.lines if line.get_linewidth() == 3]
    assert len(labels) == len(points) == len(bars) == len(RESULTS["models"])
    for one, other in combinations(labels, 2):
        assert not one.overlaps(other)
    for label in labels:
        assert Bbox.intersection(label, axes.bbox).bounds == pytest.approx(label.bounds)
        assert not any(label.overlaps(mark) for mark in points + bars)


def test_the_results_are_of_the_recipes_as_they_are() -> None:
    assert {name: entry["recipe"] for name, entry in RESULTS["models"].items()} == {
        name: variants.recipe_of(path) for name, path in RECIPES.items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_are_those_of_the_models(name: str) -> None:
    entry = RESULTS["models"][name]
    args = Run(RECIPES[name], 0, Path()).arguments()
    found = variants.size_of(variants.build(args, [""] * 10), args.image_size)
    assert found == (entry["parameters"], entry["multiply_adds"])


@pytest.mark.parametrize("name", RECIPES)
def test_figures_are_possible(name: str) -> None:
    """Accuracies are whole numbers of test images, one for each seed; int8 has figures or a reason."""
    entry = RESULTS["models"][name]
    assert len(entry["accuracy"]) == RESULTS["seeds"] == 3
    assert len(entry["int8"]) == (0 if entry["problem"] else 3)
    for value in entry["accuracy"] + entry["int8"]:
        images = value * RESULTS["test_images"]
        assert images == pytest.approx(round(images), abs=1e-9)
    assert RESULTS["test_images"] == 364
    assert entry["step"] > 0
    assert (entry["step"] == 1) == (name == "resnet18")


def test_no_path_of_a_machine_is_on_the_pages() -> None:
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
REFUSED = {**RESULT, "multiply_adds": 1000000, "int8": [], "problem": "attention has no twin", "step": 2.345}
SOME = {
    "command": "python variants.py --seeds 3",
    "machine": "two cores",
    "torch": "2.15.0",
    "seeds": 3,
    "rounds": 5,
    "test_images": 200,
    "models": {"resnet18": RESULT, "resnet26_sasa": REFUSED},
}


def test_the_table() -> None:
    """Mean, lowest and highest by hand; the cheapest first; a note where there is no int8."""
    *_, table, note = variants_pages.markdown(SOME).split("\n\n")
    assert table.splitlines()[2:] == [
        "| resnet26_sasa | 1,234,567 | 1.00 M | 97.00 %, 95.00–99.00 | – (1) | 12 | 2.35 |",
        "| resnet18 | 1,234,567 | 2.50 M | 97.00 %, 95.00–99.00 | 95.00 % | 12 | 1.00 |",
    ]
    assert note == "(1) resnet26_sasa has no int8 form: attention has no twin"
    assert "Two cores, torch 2.15.0" in variants_pages.markdown(SOME)
    assert "one is 0.50 points" in " ".join(variants_pages.page(SOME).split())


def test_pages_are_written_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    variants_pages.write_results(tmp_path / "variants.json", SOME)
    variants.main(arguments("--render", "--docs", str(tmp_path), "--readme", str(readme)))
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"above\n{BEGIN}\n`python variants.py --seeds 3`\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "old" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "variants.json", "variants.rst", "variants.svg"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    variants.main(arguments("--render", "--docs", str(tmp_path), "--readme", str(readme)))
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("text", ["none", BEGIN, END, f"{END} {BEGIN}"])
def test_without_markers_nothing_is_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    variants_pages.write_results(tmp_path / "variants.json", SOME)
    with pytest.raises(ValueError, match=r"README.md must hold <!-- variants: begin --> and, after it"):
        variants_pages.write_pages(Pages(tmp_path, tmp_path / "README.md"))
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "variants.json"}


def test_wrong_results(tmp_path: Path) -> None:
    path = tmp_path / "variants.json"
    with pytest.raises(ValueError, match=r"variants.json does not exist: without --render"):
        variants_pages.load_results(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"variants.json is no JSON"):
        variants_pages.load_results(path)
