"""Sphinx settings. ``make docs`` builds the pages, with warnings as errors and without a network."""

import sys
from pathlib import Path

SOURCE = Path(__file__).parent
GENERATED = SOURCE / "generated"
GENERATED.mkdir(exist_ok=True)
sys.path.insert(0, str(SOURCE.parent))

import figures  # noqa: E402
import gallery  # noqa: E402
from drawings import DRAWINGS  # noqa: E402
from inventories import write_inventories  # noqa: E402
from moving import PEERS, check, table  # noqa: E402

from torchvision_layers import quantized  # noqa: E402

project = "torchvision_layers"
author = "the authors of torchvision_layers"
copyright = author
version = release = (SOURCE.parents[1] / "version.txt").read_text().strip()

extensions = [
    "directives",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",  # for `testsetup`: code that examples need but readers do not
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["tutorials", "generated/tutorial_sources"]  # sphinx-gallery writes the pages
sphinx_gallery_conf = gallery.settings()
html_static_path = ["_static"]

# API pages: the docstring, with the types in the signature.
autosummary_generate = True
autosummary_context = {
    "drawings": set(DRAWINGS),
    "twins": set(quantized.__all__),
}
# The pages of two names that differ only in case would overwrite each other on file systems that ignore case.
autosummary_filename_map = {
    "torchvision_layers.quantized.report": "torchvision_layers.quantized.report-function",
    "torchvision_layers.testing.check": "torchvision_layers.testing.check-function",
}
autodoc_preserve_defaults = True  # nn.ReLU instead of its repr
autodoc_inherit_docstrings = False  # every layer would repeat those of nn.Module
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False

# Argument tables. The build fails if a pair of layers gives different results.
for library in ("torchvision", "timm"):
    peers = [peer for peer in PEERS if peer.library == library]
    for peer in peers:
        check(peer)
    (GENERATED / f"arguments_{library}.txt").write_text("\n".join(map(table, peers)), encoding="utf-8")

for name, make in (("layers", figures.layers), ("folded", figures.layers), ("int8", figures.models)):
    measured = figures.load(SOURCE / f"benchmarks_{name}.json")
    (GENERATED / f"benchmarks_{name}.txt").write_text(make(measured), encoding="utf-8")
# These take hours to record.
for name, render in (
    ("runtimes", figures.runtimes),
    ("growth", figures.growth),
    ("accuracy", figures.accuracy),
    ("formats", figures.formats),
    ("onnx", figures.onnx),
    ("quantizing", figures.quantizing),
):
    path = SOURCE / f"benchmarks_{name}.json"
    text = render(figures.load(path)) if path.exists() else "No figures are recorded yet.\n"
    (GENERATED / f"benchmarks_{name}.txt").write_text(text, encoding="utf-8")

for name, source, render in (
    ("versions", "versions.json", figures.versions),
    ("extras", "versions.json", figures.extras),
    ("import_time", "benchmarks_import.json", figures.import_time),
    ("segmentation", "variants_segmentation.json", figures.segmentation),
):
    (GENERATED / f"{name}.txt").write_text(render(figures.load(SOURCE / source)), encoding="utf-8")

# Links to other projects use inventories with only the names in inventories.py.
intersphinx_mapping = write_inventories(GENERATED / "inventories")
nitpicky = True
# The folded form of CoordConv2d, the export of QuantizableGraph, the program of LoweredModel and the inputs of a call
# are not public; torch has no page for the return type of load_state_dict; the type variable of `replace` has no page.
nitpick_ignore = [
    ("py:class", "torchvision_layers.layers.replacement._Module"),
    ("py:class", "PositionalConv2d"),
    ("py:class", "torchvision_layers.layers.positional_conv.PositionMap"),
    ("py:class", "torchvision_layers.layers.positional_conv.PositionalConv2d"),
    ("py:class", "torch.nn._IncompatibleKeys"),
    ("py:class", "torchvision_layers._utils.inputs.Inputs"),
    ("py:class", "torchvision_layers.quantized.pt2e.export.ExportedModel"),
    ("py:class", "torchvision_layers.quantized.pt2e.signature.Signature"),
    ("py:class", "torchvision_layers.deploy.lowering.program.Program"),
]

html_math_renderer = "mathml"  # in directives.py: browsers render MathML without an external script
html_theme = "pydata_sphinx_theme"
html_title = "torchvision_layers"
html_css_files = ["layout.css"]
html_js_files = [("accessible.js", {"defer": "defer"})]
html_sidebars = {"index": []}
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 4,
    "navigation_with_keys": False,
    "footer_start": [],
    "footer_end": [],
}
