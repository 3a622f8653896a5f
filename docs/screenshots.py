"""Screenshots of the pages, and a search for content that is wider than the window.

    python docs/screenshots.py --output-dir outputs/pages

takes a screenshot of every page of docs/build/html at phone and desktop width, in headless Chromium.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chromium import post_of_page, screenshot

__all__ = ["WIDTHS", "Measured", "measure", "take"]

BUILT = Path(__file__).parent / "build" / "html"
WIDTHS = (400, 1280)


class Measured(NamedTuple):
    """A page at one window width: the width of its content, and the elements wider than the window."""

    page: str
    width: int
    content: int
    offenders: tuple[str, ...]
    #: Images that did not load, or have no alt text.
    bad_images: tuple[str, ...]


# A Chromium window is at least 500 pixels wide, a frame may be narrower. Its page sees the width of the frame.
_FRAME = """<!doctype html><body style="margin:0"><iframe id="f" style="border:0"></iframe><script>
const jobs = %s, results = [], frame = document.getElementById("f");
function next() {
  if (!jobs.length) { fetch("/", {method: "POST", body: JSON.stringify(results)}); return; }
  const [page, width, height, theme] = jobs.shift();
  frame.width = width; frame.height = height;
  frame.onload = () => setTimeout(() => {
    const doc = frame.contentDocument, root = doc.documentElement;
    root.dataset.theme = theme;
    const wide = [...doc.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > width + 1);
    const inner = wide.filter(e => ![...e.children].some(c => wide.includes(c)));
    const images = [...doc.images].filter(i => i.loading != "lazy" && (!i.complete || !i.naturalWidth || !i.alt));
    results.push([page, width, root.scrollWidth, root.scrollWidth > width ? inner.slice(0, 3).map(
      e => e.tagName + "." + e.className + ": " + e.textContent.slice(0, 60)) : [], images.map(i => i.src)]);
    next();
  }, 300);
  frame.src = "/" + page;
}
next();</script>"""


def _frame(jobs: Sequence[tuple[str, int, int, str]]) -> dict[str, str]:
    return {"frame": _FRAME % json.dumps(jobs)}


def measure(folder: Path, pages: Sequence[str], widths: Sequence[int] = WIDTHS) -> list[Measured]:
    """Opens each page at each width."""
    jobs = [(page, width, 900, "light") for page in pages for width in widths]
    measured = post_of_page(folder, "frame", _frame(jobs), timeout=60 + 2 * len(jobs))
    return [Measured(page, width, content, tuple(wide), tuple(bad)) for page, width, content, wide, bad in measured]


def take(folder: Path, page: str, width: int, path: Path, *, theme: str = "light", height: int = 900) -> None:
    """Writes a screenshot of the top of a page."""
    screenshot(folder, "frame", _frame([(page, width, height, theme)]), path, (max(width, 500), height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the screenshots")
    parser.add_argument("--pages", nargs="+", help="paths below docs/build/html; default: all pages")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="default: light")
    parser.add_argument("--height", type=int, default=1600, help="height of a screenshot; default: 1600")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for page in args.pages or sorted(str(path.relative_to(BUILT)) for path in BUILT.rglob("*.html")):
        for width in WIDTHS:
            name = f"{page.replace('/', '-').removesuffix('.html')}-{width}-{args.theme}.png"
            take(BUILT, page, width, args.output_dir / name, theme=args.theme, height=args.height)


if __name__ == "__main__":
    main()
