"""The page of the docs runs exported models in a browser, with the labels of Python."""

import shutil
from pathlib import Path

import pytest
from browser_example import classify_in_browser, install_runtime, write_page
from chromium import browser


@pytest.mark.slow
@pytest.mark.skipif(browser() is None or shutil.which("npm") is None, reason="needs Chromium and npm")
def test_labels_in_browser_are_those_of_python(tmp_path: Path) -> None:
    expected = write_page(tmp_path)
    assert all(len(set(labels)) == 10 for labels in expected.values())
    install_runtime(tmp_path)
    assert classify_in_browser(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
def test_error_on_page_is_raised(tmp_path: Path) -> None:
    page = '<script>fetch("result", {method: "POST", body: JSON.stringify({error: "no model"})})</script>'
    (tmp_path / "index.html").write_text(page)
    with pytest.raises(RuntimeError, match="the page raised an error: no model"):
        classify_in_browser(tmp_path)
