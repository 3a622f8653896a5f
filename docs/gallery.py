"""Settings of sphinx-gallery, which runs the tutorials and writes their pages."""

import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["reset", "settings"]

SOURCE = Path(__file__).parent / "source"
TUTORIALS = SOURCE / "tutorials"
COPIED = SOURCE / "generated" / "tutorial_sources"  # git ignores it
PAGES = SOURCE / "generated" / "tutorials"


def reset(configuration: dict[str, Any], name: str) -> None:
    """Lets a tutorial find the reference scripts, and undoes what the one before it set in torch."""
    import torch

    os.environ["REPOSITORY"] = str(SOURCE.parents[1])
    torch.manual_seed(0)
    torch.set_num_threads(min(os.cpu_count() or 1, 2))


def settings() -> dict[str, Any]:
    """The value of ``sphinx_gallery_conf``.

    Tutorials run in the folder of their source and write files there, so they are copied first.
    """
    shutil.rmtree(COPIED, ignore_errors=True)
    shutil.copytree(TUTORIALS, COPIED)
    return {
        "examples_dirs": [str(COPIED)],
        "gallery_dirs": [str(PAGES)],
        "filename_pattern": r"/\d_",
        "within_subsection_order": "FileNameSortKey",
        "reset_modules": ("matplotlib", "gallery.reset"),
        "abort_on_example_error": True,
        "run_stale_examples": True,  # the package may have changed
        "download_all_examples": False,
        "show_memory": False,
        "show_signature": False,
        "write_computation_times": False,
        "copyfile_regex": r"^$",
    }
