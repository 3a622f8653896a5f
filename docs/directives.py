"""What these pages need of Sphinx beyond its own: drawings, and names as this package writes them."""

import importlib

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from drawings import DRAWINGS
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

__all__ = ["setup"]

#: What a layer argument may be, as signatures spell it out; docs/source/composing.rst tells it in words.
_LAYER_ARGUMENT = (
    "~collections.abc.Callable[[...], ~torch.nn.modules.module.Module] | ~torch.nn.modules.module.Module",
    "LayerArgument",
)
#: Doors in the order in which a short name is looked for.
_DOORS = ("nn", "experimental.nn", "quantized", "deploy", "testing")
#: Modules of torch that classes say they are from, and where its pages have them.
_HOMES = {"torch.nn.modules.": "torch.nn.", "torch.fx.graph_module.": "torch.fx."}


class DrawingDirective(SphinxDirective):
    """``.. drawing:: name``: an image of docs/source/images, with the words it has for who cannot see it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        if name not in DRAWINGS:
            raise self.error(f"drawing must be one of {', '.join(DRAWINGS)}, got {name}")
        return [nodes.image(uri=f"/images/{name}.svg", alt=DRAWINGS[name].alt, classes=["drawing"])]


def lead_names_home(app: Sphinx, doctree: nodes.document) -> None:
    """Docstrings write ``:class:`ConvNormAct``` in every room; torch's classes say which file they are from."""
    names = {"LayerArgument": "torchvision_layers.nn.LayerArgument"}
    for door in reversed(_DOORS):
        path = f"torchvision_layers.{door}"
        names.update({name: f"{path}.{name}" for name in importlib.import_module(path).__all__})
    for node in doctree.findall(pending_xref):
        target = node.get("reftarget", "")
        own = f"{node.get('py:module')}.{target}"
        if node.get("refdomain") != "py" or own in names.values():
            continue
        if node["reftype"] == "mod" and target in _DOORS:
            node["reftarget"] = f"torchvision_layers.{target}"
        if target in names:
            node["reftarget"] = names[target]
        for prefix, home in _HOMES.items():
            if target.startswith(prefix):
                node["reftarget"] = home + target.rsplit(".", 1)[1]


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Gives the union that a layer argument is its name."""
    return signature and signature.replace(*_LAYER_ARGUMENT), returned


def write_inline_formula(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_formula(self: HTML5Translator, node: nodes.math_block) -> None:
    formula = tex2mathml(node.astext()).replace("<math ", '<math display="block" ', 1)
    self.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


class AttributeComments:
    """Keeps napoleon from reading ``#: a sentence: with a colon`` as a type and a description."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def keep(self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        self.lines = list(lines)

    def restore(self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        if what in ("attribute", "property"):
            lines[:] = self.lines


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("drawing", DrawingDirective)
    app.add_html_math_renderer("mathml", (write_inline_formula, None), (write_formula, None))
    app.connect("doctree-read", lead_names_home)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", shorten_signature)
    comments = AttributeComments()
    app.connect("autodoc-process-docstring", comments.keep, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", comments.restore, priority=600)
    return {"parallel_read_safe": True}
