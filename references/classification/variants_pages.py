"""The results of variants.py as a table in the README, a page of the docs and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any, NamedTuple

from checkpoints import atomic_path
from variants_picture import plot_variants

__all__ = ["BEGIN", "END", "Pages", "load_results", "markdown", "page", "write_pages", "write_results"]

BEGIN, END = "<!-- variants: begin -->", "<!-- variants: end -->"
HEADER = ("model", "parameters", "multiply-adds", "accuracy, lowest–highest", "int8", "epochs", "step")
NO_FIGURE = "–"
WIDTH = 120  # of a line of text


class Pages(NamedTuple):
    """Where the results are and what is made of them: a folder of the docs, and a page with the two markers."""

    docs: Path
    readme: Path

    @property
    def results(self) -> Path:
        return self.docs / "variants.json"

    @property
    def page(self) -> Path:
        return self.docs / "variants.rst"

    @property
    def picture(self) -> Path:
        return self.docs / "variants.svg"

    def written(self) -> list[Path]:
        return [self.page, self.picture, self.readme]


def load_results(path: Path) -> dict[str, Any]:
    """The results of the last run; ``ValueError`` where there are none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: without --render, variants.py makes it") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def write_results(path: Path, results: dict[str, Any]) -> None:
    _write(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def write_pages(pages: Pages) -> None:
    """Makes the page, the picture and the table in the README from the results.

    Errors: ``ValueError`` if there are no results, or the README has not both markers, in order.
    """
    results = load_results(pages.results)
    readme = with_table(pages.readme, markdown(results))
    plot_variants(results, pages.picture)
    _write(pages.page, page(results))
    _write(pages.readme, readme)


def with_table(path: Path, text: str) -> str:
    """The page at ``path`` with ``text`` between the markers."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} must hold {BEGIN} and, after it, {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def markdown(results: dict[str, Any]) -> str:
    """What stands between the markers."""
    lines, notes = cells(results)
    sides = ["---", *["---:"] * (len(HEADER) - 1)]
    rows = [HEADER, sides, *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join(
        [f"`{results['command']}`", fill(conditions(results), WIDTH), table, *(fill(note, WIDTH) for note in notes)]
    )


def page(results: dict[str, Any]) -> str:
    """The page of the docs, in reStructuredText."""
    lines, notes = cells(results)
    rows = [HEADER, *([f"``{name}``", *rest] for name, *rest in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    rule = "  ".join("=" * width for width in widths)
    head, *body = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    intro = (
        f"The {len(results['models'])} reference models that have a recipe in ``references/classification/recipes``, "
        f"each at the size that the recipe gives it to learn scikit-learn's digits. {conditions(results)}"
    )
    table = "\n".join([rule, head, rule, *body, rule])
    return f"""\
Variants
========

.. This page is made by ``{results["command"]}``;
   ``python references/classification/variants.py --render`` makes it again from variants.json, and a test fails where
   it is not current. Nothing in it is written by hand.

{fill(intro, WIDTH)}

.. image:: variants.svg
   :alt: Test accuracy of each model against its multiply-adds

{table}

{chr(10).join(fill(note, WIDTH) for note in notes)}

How to read it: ``references/classification/README.md``, under "Variants".
"""


def conditions(results: dict[str, Any]) -> str:
    """What the figures were measured on."""
    count = results["test_images"]
    machine = results["machine"][:1].upper() + results["machine"][1:]
    return (
        f"{machine}, torch {results['torch']}, one thread a run, {results['seeds']} seeds; {count} test images, "
        f"one is {100 / count:.2f} points; steps timed in {results['rounds']} rounds."
    )


def cells(results: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """The lines of the table, the cheapest model first, and its footnotes."""
    lines, notes = [], []
    for name, entry in sorted(results["models"].items(), key=lambda item: item[1]["multiply_adds"]):
        in_int8 = f"{100 * mean(entry['int8']):.2f} %" if entry["int8"] else NO_FIGURE
        if entry["problem"]:
            notes.append(f"({len(notes) + 1}) {name} has no int8 form: {entry['problem']}")
            in_int8 += f" ({len(notes)})"
        line = [
            name,
            f"{entry['parameters']:,}",
            f"{entry['multiply_adds'] / 1e6:.2f} M",
            accuracy(entry["accuracy"]),
            in_int8,
            option(entry["recipe"], "epochs"),
            f"{entry['step']:.2f}",
        ]
        lines.append(line)
    return lines, notes


def accuracy(values: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{100 * mean(values):.2f} %, {100 * min(values):.2f}–{100 * max(values):.2f}"


def option(recipe: str, name: str) -> str:
    """What a recipe, its arguments in one line, gives an option; a dash where it gives none."""
    given = dict(word.removeprefix("--").split("=", 1) for word in recipe.split())
    return given.get(name, NO_FIGURE)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
