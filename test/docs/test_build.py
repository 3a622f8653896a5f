"""Sphinx builds the pages without a warning, and they fit into the window of a browser."""

import subprocess
import sys
from pathlib import Path

import pytest
import screenshots

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pages")
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html"]
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
@pytest.mark.skipif(
    screenshots.browser() is None, reason=f"no Chromium on the path: shutil.which finds none of {screenshots.BROWSERS}"
)
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
