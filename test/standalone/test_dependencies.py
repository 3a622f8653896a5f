"""The command without libcst, which it needs, and without ruff, which formats the files."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchvision_layers._source import formatting
from torchvision_layers.standalone import source

REFERENCE = "torchvision_layers.nn:MBConv"


def test_error_without_libcst(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["libcst"] = None  # importing it raises from here on
from torchvision_layers.standalone import write
from torchvision_layers.standalone.__main__ import main
path = {str(tmp_path / "layer.py")!r}
try:
    write({REFERENCE!r}, path)
except ImportError as error:
    print(error)
print(main([{REFERENCE!r}, "-o", path]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message = 'standalone needs libcst: pip install "torchvision_layers[standalone]"'
    assert result.stdout == f"{message}\n2\n"
    assert result.stderr == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_without_ruff_only_the_format_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = source(REFERENCE, quantizable=True)
    monkeypatch.setattr(formatting.shutil, "which", lambda *args, **kwargs: None)
    text = source(REFERENCE, quantizable=True)
    compile(text, "layer.py", "exec")
    monkeypatch.undo()
    assert formatting.formatted(text, sort_imports=True) == expected
