"""Writes the drawings to docs/source/images."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER))

from drawings import DRAWINGS  # noqa: E402

for name, drawing in DRAWINGS.items():
    (FOLDER / "source" / "images" / f"{name}.svg").write_text(drawing.svg(), encoding="utf-8")
