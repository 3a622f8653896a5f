"""An exported model in a browser, on the digits of scikit-learn.

    python docs/browser_example.py --output-dir outputs/browser

trains a small network, exports it in float and in int8, installs onnxruntime-web with npm, and opens the page
docs/browser/digits.html with headless Chromium. It prints how many labels agree with those in Python. To look at the
page yourself, run ``python -m http.server --directory outputs/browser``.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from screenshots import browser
from sklearn.datasets import load_digits
from torch import nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn

__all__ = ["classify_in_browser", "install_runtime", "write_page"]

PAGE = Path(__file__).parent / "browser" / "digits.html"
_RUNTIME = "onnxruntime-web@1.30.0"
SIZE, MEAN, STD = 8, 0.3, 0.4
_TESTED = 297


def train() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network, and the normalized images that it was trained and not trained on."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1).div(16).sub(MEAN).div(STD)
    targets = torch.from_numpy(digits.target)
    trained = images[:-_TESTED], targets[:-_TESTED]
    torch.manual_seed(0)
    model = nn.Sequential(
        tnn.ConvNormAct(1, 16),
        tnn.InvertedResidual(16, 24, stride=2, expand_ratio=3, se_layer=tnn.SqueezeExcitation),
        tnn.BasicBlock(24, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(6):
        for batch in torch.randperm(len(trained[0])).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(trained[0][batch]), trained[1][batch]).backward()
            optimizer.step()
    return model.eval(), trained[0], images[-_TESTED:]


def write_page(folder: Path) -> dict[str, list[str]]:
    """Writes the page, its models and its images to a folder, and returns the labels of each model in Python."""
    model, calibration, tests = train()
    int8 = quantized.quantize(model, list(calibration.split(100)), engine="pt2e", backend="onnxruntime")
    options: dict[str, Any] = {"classes": [str(i) for i in range(10)], "mean": [MEAN], "std": [STD]}
    deploy.export(model, tests[:2], folder / "digits.onnx", format="onnx", **options)
    deploy.export(int8, tests[:2], folder / "digits_int8.onnx", format="onnx-qdq", **options)
    loaded = {name: deploy.load(folder / name) for name in ("digits.onnx", "digits_int8.onnx")}
    metadata = loaded["digits.onnx"].metadata
    content = {
        "models": list(loaded),
        "size": SIZE,
        "mean": metadata["mean"][0],
        "std": metadata["std"][0],
        "classes": metadata["classes"],
        "images": tests.mul(STD).add(MEAN).flatten(1).tolist(),
    }
    (folder / "digits.json").write_text(json.dumps(content))
    shutil.copy(PAGE, folder / "index.html")
    return {
        name: [metadata["classes"][i] for i in program(tests).argmax(1).tolist()] for name, program in loaded.items()
    }


def install_runtime(folder: Path) -> None:
    """Installs onnxruntime-web below a folder. Errors: ``FileNotFoundError`` without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm must be on the path to install onnxruntime-web: install Node.js")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), _RUNTIME]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what the page posts."""

    posted: threading.Event
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.posted.set()

    def log_message(self, format: str, *args: object) -> None:
        pass


def classify_in_browser(folder: Path, timeout: float = 120) -> dict[str, list[str]]:
    """The labels that each model gives on the page of a folder, in headless Chromium.

    Errors: ``FileNotFoundError`` without Chromium; ``RuntimeError`` for an error on the page, or if it does not end.
    """
    chromium = browser()
    if chromium is None:
        raise FileNotFoundError("chromium must be on the path to open the page: apt-get install chromium")
    handler = type("Handler", (_Handler,), {"posted": threading.Event(), "bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Only the local server resolves, so the page loads nothing from the network.
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        # Without a port for debugging, it exits before the page has ended.
        options += ["--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        command = [chromium, *options, f"http://127.0.0.1:{server.server_port}/index.html"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            handler.posted.wait(timeout)
        finally:
            process.terminate()
            process.wait(30)
            server.shutdown()
            thread.join()
            server.server_close()
    if not handler.bodies:
        raise RuntimeError(f"the page must end within {timeout:g} seconds")
    result = json.loads(handler.bodies[0])
    if "error" in result:
        raise RuntimeError(f"the page raised an error: {result['error']}")
    return dict(result["labels"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/browser"))
    folder = parser.parse_args(argv).output_dir
    folder.mkdir(parents=True, exist_ok=True)
    expected = write_page(folder)
    install_runtime(folder)
    for name, labels in classify_in_browser(folder).items():
        same = sum(map(str.__eq__, labels, expected[name]))
        print(f"{name}: {same} of {len(labels)} labels are those of Python")


if __name__ == "__main__":
    main()
