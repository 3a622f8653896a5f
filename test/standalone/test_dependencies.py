"""The command without libcst, which it needs, and without ruff, which formats the files."""

import re
import sys
from pathlib import Path

import pytest

from torchvision_layers._source import formatting
from torchvision_layers.standalone import source, write
from torchvision_layers.standalone.__main__ import main

REFERENCE = "torchvision_layers.nn:MBConv"


def test_error_without_libcst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith(("torchvision_layers.standalone._", "torchvision_layers._source")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "libcst", None)  # importing it raises from here on
    message = 'standalone needs libcst: pip install "torchvision_layers[standalone]"'
    with pytest.raises(ImportError, match=re.escape(message)):
        write(REFERENCE, tmp_path / "layer.py")
    assert main([REFERENCE, "-o", str(tmp_path / "layer.py")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_without_ruff_only_the_format_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = source(REFERENCE, quantizable=True)
    monkeypatch.setattr(formatting.shutil, "which", lambda *args, **kwargs: None)
    text = source(REFERENCE, quantizable=True)
    compile(text, "layer.py", "exec")
    monkeypatch.undo()
    assert formatting.format_code(text, sort_imports=True) == expected
