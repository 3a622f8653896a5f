"""Code shared with references/classification: options, files, timing, and the backbones."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "classification"))

from common.cli import HelpFormatter, RecipeParser, check_numbers, run_as_script
from common.data.presets import normalization
from common.exporting import FILES, export_files
from common.runs.files import atomic_path, check_output_dir, save_atomically
from common.runs.reproducibility import deterministic_algorithms, seed_everything
from common.settings import ModelCard
from common.tables.files import CAPTION, failed_exports, files_table
from common.tables.text import columns
from common.tables.variants import with_table
from models.mobilenet_v3 import mobilenet_v3_large
from models.resnet import resnet18

__all__ = [
    "CAPTION",
    "FILES",
    "HelpFormatter",
    "ModelCard",
    "RecipeParser",
    "atomic_path",
    "check_numbers",
    "check_output_dir",
    "columns",
    "deterministic_algorithms",
    "export_files",
    "failed_exports",
    "files_table",
    "mobilenet_v3_large",
    "normalization",
    "resnet18",
    "run_as_script",
    "save_atomically",
    "seed_everything",
    "with_table",
]
