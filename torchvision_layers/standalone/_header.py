"""The docstring of a file."""

import inspect
import textwrap
from pathlib import Path
from types import ModuleType

from .. import __version__
from .._source.formatting import LINE_LENGTH
from .._source.sources import Definition

__all__ = ["COPYRIGHT", "header", "origin"]

COPYRIGHT = "Copyright (c) 2026, the torchvision_layers contributors"

_CONTENT = (
    "The code and its comments are those of the package, without the hooks for folding layers and finding quantizable "
    "twins, and without private functions that nothing here calls. Small classes with the same state replace those of "
    "torchvision.ops."
)
_TWINS = (
    "Every layer is its quantizable twin, with the same results and state_dict; sums and products of tensors are "
    "modules that can be observed. Stubs, fusion and observers are those of torch.ao.quantization."
)
_INT8 = """\
model = QuantizableModel(model.eval())
model.fuse_model()
model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
torch.ao.quantization.prepare(model, inplace=True)
model(batch)  # some batches of training images
torch.ao.quantization.convert(model, inplace=True)"""


def origin(reference: str, module: ModuleType) -> str:
    """Shortens a reference with an absolute path: it begins above the package of the module."""
    source, _, name = reference.rpartition(":")
    if not Path(source).is_absolute():
        return reference
    parts = Path(source).parts
    return f"{'/'.join(parts[-module.__name__.count('.') - 1 :])}:{name}"


def header(root: Definition, reference: str, docstring: str, quantizable: bool) -> str:
    """Returns the docstring of a file, quotes included.

    Args:
        root: the model or layer.
        reference: its place in the source.
        docstring: that of its module.
        quantizable: whether the file contains quantizable twins.
    """
    form = "in quantizable form " if quantizable else ""
    paragraphs = [
        f"{root.name} {form}in one file that needs only torch.",
        f"Written by torchvision_layers {__version__} from {reference}. {_CONTENT}",
        *([_TWINS] if quantizable else []),
    ]
    parts = [
        "\n".join(textwrap.wrap(text, LINE_LENGTH, break_long_words=False, break_on_hyphens=False))
        for text in paragraphs
    ]
    call = f"{root.name}(...)" if inspect.isclass(root.value) else f"{root.name}()"
    usage = f'model = {call}\nmodel.load_state_dict(torch.load("weights.pth", weights_only=True))'
    purpose = (
        "Load a checkpoint (a state_dict) and convert it to int8" if quantizable else "Load a checkpoint (a state_dict)"
    )
    parts += [docstring] if docstring else []
    parts += [f"{purpose}::", textwrap.indent(f"{usage}\n{_INT8}" if quantizable else usage, "    ")]
    parts += [f"License: BSD-3-Clause. {COPYRIGHT}."]
    text = "\n\n".join(parts)
    raw = "r" if "\\" in text else ""
    return f'{raw}"""{text}\n"""'
