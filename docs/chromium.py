"""Pages in headless Chromium: what a page posts, and screenshots. Nothing is loaded from the network."""

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["BROWSERS", "browser", "npm_install", "post_of_page", "screenshot"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """Path of Chromium, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def npm_install(folder: Path, package: str) -> Path:
    """Installs a package of npm below a folder, and returns its own folder.

    Errors: ``FileNotFoundError`` without npm.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm must be on the path to install {package}: install Node.js")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), package]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "node_modules" / package.rsplit("@", 1)[0]


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder and pages from memory, and keeps what a page posts."""

    pages: Mapping[str, str]
    bodies: list[bytes]
    posted: threading.Event

    def do_GET(self) -> None:
        page = self.pages.get(self.path.lstrip("/"))
        if page is None:
            return super().do_GET()
        content = page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if self.path.endswith(".js") else "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.posted.set()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _served(folder: Path, pages: Mapping[str, str]) -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"pages": pages, "bodies": [], "posted": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _command(profile: str, *options: str) -> list[str]:
    chromium = browser()
    if chromium is None:
        raise FileNotFoundError("chromium must be on the path to open pages: apt-get install chromium")
    # Only the local server resolves.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    return [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", offline, *options]


def post_of_page(
    folder: Path, page: str = "index.html", pages: Mapping[str, str] | None = None, timeout: float = 120
) -> Any:
    """Opens a page of a folder, and returns the first JSON value that it posts.

    Args:
        folder: the folder that is served.
        page: the page to open.
        pages: pages and scripts that are not in the folder, by name.
        timeout: seconds until an error.

    Errors: ``FileNotFoundError`` without Chromium; ``RuntimeError`` for a page that posts nothing or an ``error``.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        _served(folder, pages or {}) as (address, handler),
    ):
        # Without a port for debugging, Chromium exits before the page has ended.
        command = _command(profile, "--remote-debugging-port=0", "--window-size=1600,1000", f"{address}/{page}")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            handler.posted.wait(timeout)
        finally:
            process.terminate()
            process.wait(30)
    if not handler.bodies:
        raise RuntimeError(f"the page must end within {timeout:g} seconds")
    result = json.loads(handler.bodies[0])
    if isinstance(result, dict) and "error" in result:
        raise RuntimeError(f"the page raised an error: {result['error']}")
    return result


def screenshot(folder: Path, page: str, pages: Mapping[str, str], path: Path, size: tuple[int, int]) -> None:
    """Writes a screenshot of a page of a folder."""
    with tempfile.TemporaryDirectory() as profile, _served(folder, pages) as (address, _):
        options = ["--hide-scrollbars", "--virtual-time-budget=4000", f"--window-size={size[0]},{size[1]}"]
        command = _command(profile, *options, f"--screenshot={path}", f"{address}/{page}")
        subprocess.run(command, capture_output=True, check=True, timeout=300)
