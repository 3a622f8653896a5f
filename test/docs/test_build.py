"""Sphinx builds the pages without a warning, and they fit into the window of a browser."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import screenshots
from accessibility import VIEWS, find_barriers, install_axe
from chromium import BROWSERS, browser, post_of_page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pages")
    options = ["-W", "--keep-going", "-n", "-q", "-D", "plot_gallery=0", "-b", "html"]  # test_tutorials.py runs them
    command = [sys.executable, "-m", "sphinx", *options, "docs/source", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return target


def pages(built: Path) -> list[str]:
    return sorted(str(page.relative_to(built)) for page in built.rglob("*.html") if "_static" not in page.parts)


@pytest.mark.slow
def test_every_source_has_a_page(built: Path) -> None:
    names = {page.removesuffix(".html") for page in pages(built)}
    assert {path.stem for path in (ROOT / "docs" / "source").glob("*.rst")} <= names
    assert "generated/torchvision_layers.nn.BasicBlock" in names


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason=f"no Chromium on the path: shutil.which finds none of {BROWSERS}")
class TestInABrowser:
    def test_every_page_fits_on_a_phone_and_on_a_desktop(self, built: Path) -> None:
        measured = screenshots.measure(built, pages(built))
        assert len(measured) == len(pages(built)) * len(screenshots.WIDTHS)
        assert [page for page in measured if page.content > page.width] == []
        assert [page for page in measured if page.bad_images] == []

    def test_a_page_that_is_too_wide_is_reported(self, tmp_path: Path) -> None:
        body = '<!doctype html><body><div class="wide" style="width:800px">x</div><img src="none.png" alt="">'
        (tmp_path / "page.html").write_text(body)
        narrow, wide = screenshots.measure(tmp_path, ["page.html"])
        assert narrow.content > 400
        assert narrow.offenders == ("DIV.wide: x",)
        assert wide.content == 1280
        assert len(wide.bad_images) == 1

    def test_a_screenshot_is_written(self, built: Path, tmp_path: Path) -> None:
        screenshots.take(built, "index.html", 400, tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000

    @pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on the path to install axe-core")
    def test_axe_finds_no_serious_barrier(self, built: Path, tmp_path: Path) -> None:
        assert find_barriers(built, pages(built), install_axe(tmp_path)) == []

    @pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on the path to install axe-core")
    def test_axe_finds_planted_barriers(self, tmp_path: Path) -> None:
        body = '<p style="color:#999;background:#fff">pale</p><img src="x.png">'
        (tmp_path / "page.html").write_text(f'<!doctype html><html lang="en"><title>x</title><body>{body}')
        found = find_barriers(tmp_path, ["page.html"], install_axe(tmp_path))
        assert {finding.rule for finding in found} == {"color-contrast", "image-alt"}
        assert len(found) == 2 * len(VIEWS)

    @pytest.mark.parametrize("query", ["ConvNormAct", "quantize", "onnxruntime"])
    def test_search_finds(self, query: str, built: Path) -> None:
        script = """<script>
        const frame = document.createElement("iframe"); frame.src = "/search.html?q=%s"; document.body.append(frame);
        setInterval(() => {
          const links = [...frame.contentDocument.querySelectorAll("#search-results li a")].map(a => a.textContent);
          if (links.length) fetch("/", {method: "POST", body: JSON.stringify(links)});
        }, 500);
        </script>"""
        links = post_of_page(built, "find", {"find": "<!doctype html><body>" + script % query}, timeout=30)
        assert any(query in link or query in link.lower() for link in links)
