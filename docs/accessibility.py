"""Accessibility of the built pages, by axe-core in headless Chromium.

    python docs/accessibility.py

checks every page of docs/build/html against WCAG 2.1 AA, at phone width in dark and at desktop width in light, and
prints each serious or critical finding. It installs axe-core with npm below outputs/.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chromium import npm_install, post_of_page
from screenshots import BUILT, WIDTHS

__all__ = ["VIEWS", "Finding", "find_barriers", "install_axe"]

_AXE = "axe-core@4.14.1"
VIEWS = (*zip(WIDTHS, ("dark", "light"), strict=True),)
_BATCH = 20  # pages that one Chromium opens


class Finding(NamedTuple):
    """A rule that a page breaks at one width in one theme, and the first elements that break it."""

    page: str
    width: int
    theme: str
    rule: str
    elements: tuple[str, ...]


# The theme is stored before a page loads, as its switch does.
_FRAME = """<!doctype html><body style="margin:0"><iframe id="f" style="border:0" title="page"></iframe><script>
const jobs = %s, results = [], frame = document.getElementById("f");
async function check(page, width, theme) {
  localStorage.setItem("mode", theme); localStorage.setItem("theme", theme);
  frame.width = width; frame.height = 1000;
  await new Promise(done => { frame.onload = done; frame.src = "/" + page; });
  const doc = frame.contentDocument, script = doc.createElement("script");
  await new Promise((done, fail) => {
    script.onload = done; script.onerror = fail; script.src = "/axe.js"; doc.head.append(script);
  });
  doc.documentElement.dataset.theme = theme;
  await new Promise(done => setTimeout(done, 400));  // transitions of colors
  const found = await frame.contentWindow.axe.run(doc, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]});
  for (const rule of found.violations.filter(v => ["serious", "critical"].includes(v.impact)))
    results.push([page, width, theme, rule.id,
      rule.nodes.slice(0, 3).map(n => n.target.join(" ") + ": " + n.html.slice(0, 120))]);
}
(async () => { for (const job of jobs) await check(...job); return results; })()
  .catch(error => ({error: String(error)}))
  .then(value => fetch("/", {method: "POST", body: JSON.stringify(value)}));
</script>"""


def install_axe(folder: Path) -> str:
    """The source of axe-core, installed below ``folder``. Errors: ``FileNotFoundError`` without npm."""
    return (npm_install(folder, _AXE) / "axe.min.js").read_text(encoding="utf-8")


def find_barriers(folder: Path, pages: Sequence[str], axe: str) -> list[Finding]:
    """Serious and critical findings on pages of a folder, in each view."""
    jobs = [(page, width, theme) for page in pages for width, theme in VIEWS]
    findings = []
    for start in range(0, len(jobs), _BATCH):
        batch = jobs[start : start + _BATCH]
        scripts = {"frame": _FRAME % json.dumps(batch), "axe.js": axe}
        findings += [
            Finding(page, width, theme, rule, tuple(elements))
            for page, width, theme, rule, elements in post_of_page(folder, "frame", scripts, timeout=300)
        ]
    return findings


def main() -> int:
    folder = Path("outputs") / "axe"
    folder.mkdir(parents=True, exist_ok=True)
    pages = sorted(str(path.relative_to(BUILT)) for path in BUILT.rglob("*.html") if "_static" not in path.parts)
    findings = find_barriers(BUILT, pages, install_axe(folder))
    for finding in findings:
        print(
            f"{finding.page}, {finding.width} pixels, {finding.theme}: {finding.rule}", *finding.elements, sep="\n    "
        )
    print(f"{len(findings)} serious findings on {len(pages)} pages")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
