"""Sphinx extension of these pages: drawings, formulas, and links from short names."""

import importlib

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from drawings import DRAWINGS
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

__all__ = ["setup"]

#: Type of a layer argument, as signatures spell it out. docs/source/composing.rst describes it.
_LAYER_ARGUMENT = (
    "~collections.abc.Callable[[...], ~torch.nn.modules.module.Module] | ~torch.nn.modules.module.Module",
    "LayerArgument",
)
#: Public packages, in the order in which a short name is looked up.
_PACKAGES = ("nn", "experimental.nn", "quantized", "deploy", "testing")
#: Modules that torch's classes name as their own, and the modules under which its documentation lists them.
_DOCUMENTED_MODULES = {"torch.nn.modules.": "torch.nn.", "torch.fx.graph_module.": "torch.fx."}


class DrawingDirective(SphinxDirective):
    """``.. drawing:: name``: an image of docs/source/images, with its alt text."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        if name not in DRAWINGS:
            raise self.error(f"drawing must be one of {', '.join(DRAWINGS)}, got {name}")
        return [nodes.image(uri=f"/images/{name}.svg", alt=DRAWINGS[name].alt, classes=["drawing"])]


def resolve_short_names(app: Sphinx, doctree: nodes.document) -> None:
    """Links ``:class:`ConvNormAct``` from any package, and torch's classes, whose module names an internal file."""
    names = {"LayerArgument": "torchvision_layers.nn.LayerArgument"}
    for package in reversed(_PACKAGES):
        path = f"torchvision_layers.{package}"
        names.update({name: f"{path}.{name}" for name in importlib.import_module(path).__all__})
    for node in doctree.findall(pending_xref):
        target = node.get("reftarget", "")
        own = f"{node.get('py:module')}.{target}"
        if node.get("refdomain") != "py" or own in names.values():
            continue
        if node["reftype"] == "mod" and target in _PACKAGES:
            node["reftarget"] = f"torchvision_layers.{target}"
        owner, dot, member = target.partition(".")
        if owner in names:
            node["reftarget"] = names[owner] + dot + member
        for prefix, documented in _DOCUMENTED_MODULES.items():
            if target.startswith(prefix):
                node["reftarget"] = documented + target.rsplit(".", 1)[1]


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Writes the union type of a layer argument as its name."""
    return signature and signature.replace(*_LAYER_ARGUMENT), returned


def write_inline_formula(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_formula(self: HTML5Translator, node: nodes.math_block) -> None:
    formula = tex2mathml(node.astext()).replace("<math ", '<math display="block" ', 1)
    self.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


class AttributeComments:
    """Prevents napoleon from reading ``#: a sentence: with a colon`` as a type and a description."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def save(self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        self.lines = list(lines)

    def restore(self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        if what in ("attribute", "property"):
            lines[:] = self.lines


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("drawing", DrawingDirective)
    app.add_html_math_renderer("mathml", (write_inline_formula, None), (write_formula, None))
    app.connect("doctree-read", resolve_short_names)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", shorten_signature)
    comments = AttributeComments()
    app.connect("autodoc-process-docstring", comments.save, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", comments.restore, priority=600)
    return {"parallel_read_safe": True}
