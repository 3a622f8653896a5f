"""A stable layer as a change to a checkout of torchvision."""

import inspect
import json
import re
from pathlib import Path

from torch import nn

from test.conformance.specs import SPECS
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .checkout import DOCS, TESTS, open_checkout
from .docstrings import EQUIVALENTS
from .edits import add_page_entry
from .ops_test import add_tests, tests_of
from .placement import is_torchvision_layer, place
from .pull_request import pull_request

__all__ = ["propose"]

_RECORD = Path(__file__).parents[2] / "docs/source/conformance.json"


def propose(layer: str, path: str | Path) -> str:
    """Adds a stable layer to a checkout of torchvision; returns the text of a pull request.

    Args:
        layer: a name in ``torchvision_layers.nn``.
        path: the top folder of a clean checkout, in the layout of torchvision 0.29.

    Raises ``ValueError``, and writes nothing, if there is no such layer, if torchvision has it, or if the checkout does
    not fit.
    """
    cls = _stable_layer(layer)
    checkout = open_checkout(path)
    spec = next(spec for spec in SPECS if spec.name == layer)
    record = json.loads(_RECORD.read_text(encoding="utf-8"))[layer]
    texts = place(cls, checkout)
    tests = checkout.read(TESTS)
    code = tests_of(spec, _title(layer, tests))
    texts |= {DOCS: add_page_entry(checkout.read(DOCS), layer), TESTS: add_tests(tests, code)}
    for file, text in texts.items():
        (checkout.path / file).write_text(text, encoding="utf-8")
    return pull_request(
        layer,
        inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        code.count("pytest.param("),
        record,
        is_replacement=layer in checkout.operators,
        models=checkout.models_with(layer),
    )


def _stable_layer(name: str) -> type[nn.Module]:
    if name in enn.__all__:
        raise ValueError(f"{name} is experimental, promote it before you propose it to torchvision")
    layers = [layer for layer in tnn.__all__ if isinstance(getattr(tnn, layer), type)]
    if name not in layers:
        raise ValueError(f"the layer must be one of torchvision_layers.nn, got {name!r}: {', '.join(layers)}")
    layer: type[nn.Module] = getattr(tnn, name)
    if is_torchvision_layer(layer):
        raise ValueError(f"{name} is torchvision.ops.{name} already, with checks of its arguments and input")
    if name in EQUIVALENTS:
        raise ValueError(f"{name} is torchvision.ops.{EQUIVALENTS[name]} already, under another name")
    return layer


def _title(layer: str, tests: str) -> str:
    """A name for the test class that is free in the file."""
    for title in (f"Test{layer}", f"Test{layer}Layer"):
        if not re.search(rf"^class {title}\b", tests, re.M):
            return title
    raise ValueError(f"{TESTS} must not have tests of {layer} yet, it has Test{layer} and Test{layer}Layer")
