"""Screenshots of the pages, and a search for content that is wider than the window.

    python docs/screenshots.py --output-dir outputs/pages

takes a screenshot of every page of docs/build/html at phone and desktop width, in headless Chromium.
"""

import argparse
import html
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

__all__ = ["BROWSERS", "WIDTHS", "Measured", "browser", "measure", "take"]

BUILT = Path(__file__).parent / "build" / "html"
WIDTHS = (400, 1280)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_MARK = "measured:"


class Measured(NamedTuple):
    """A page at one window width: the width of its content, and the elements wider than the window."""

    page: str
    width: int
    content: int
    offenders: tuple[str, ...]
    #: Images that did not load, or have no alt text.
    bad_images: tuple[str, ...]


# A Chromium window is at least 500 pixels wide, a frame may be narrower. Its page sees the width of the frame.
_FRAME = """<!doctype html><body style="margin:0"><iframe id="f" style="border:0"></iframe><pre id="r"></pre><script>
const jobs = %s, results = [], frame = document.getElementById("f");
function next() {
  if (!jobs.length) { document.getElementById("r").textContent = "%s" + JSON.stringify(results); return; }
  const [page, width] = jobs.shift();
  frame.width = width; frame.height = 900;
  frame.onload = () => setTimeout(() => {
    const doc = frame.contentDocument, root = doc.documentElement;
    root.dataset.theme = "%s";
    const wide = [...doc.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > width + 1);
    const inner = wide.filter(e => ![...e.children].some(c => wide.includes(c)));
    const images = [...doc.images].filter(i => i.loading != "lazy" && (!i.complete || !i.naturalWidth || !i.alt));
    results.push([page, width, root.scrollWidth, root.scrollWidth > width ? inner.slice(0, 3).map(
      e => e.tagName + "." + e.className + ": " + e.textContent.slice(0, 60)) : [], images.map(i => i.src)]);
    %s
  }, 300);
  frame.src = "/" + page;
}
next();</script>"""


def browser() -> str | None:
    """Path of Chromium, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class _Handler(SimpleHTTPRequestHandler):
    frame = ""

    def do_GET(self) -> None:
        if self.path != "/frame":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.frame.encode())
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _served(folder: Path, frame: str) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"frame": frame})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/frame"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _run(folder: Path, frame: str, budget: int, *options: str) -> str:
    chromium = browser()
    if chromium is None:
        raise FileNotFoundError("chromium must be on the path to take screenshots: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile, _served(folder, frame) as address:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        # Only the local server resolves, so pages load nothing from the network.
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--hide-scrollbars"]
        command += [f"--virtual-time-budget={budget}", *options, address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def measure(folder: Path, pages: Sequence[str], widths: Sequence[int] = WIDTHS) -> list[Measured]:
    """Opens each page at each width."""
    jobs = [(page, width) for page in pages for width in widths]
    frame = _FRAME % (json.dumps(jobs), _MARK, "light", "next();")
    dumped = _run(folder, frame, 1000 * len(jobs) + 5000, "--window-size=1600,1000", "--dump-dom")
    text = html.unescape(dumped.partition(f'<pre id="r">{_MARK}')[2].partition("</pre>")[0])
    return [
        Measured(page, width, content, tuple(wide), tuple(bad)) for page, width, content, wide, bad in json.loads(text)
    ]


def take(folder: Path, page: str, width: int, path: Path, *, theme: str = "light", height: int = 900) -> None:
    """Writes a screenshot of the top of a page."""
    frame = _FRAME % (json.dumps([(page, width)]), _MARK, theme, "")
    frame = frame.replace("frame.height = 900", f"frame.height = {height}")
    _run(folder, frame, 4000, f"--window-size={max(width, 500)},{height}", f"--screenshot={path}")


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
