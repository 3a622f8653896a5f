"""What a file says of itself."""

import inspect
import textwrap
from pathlib import Path
from types import ModuleType

from .. import __version__
from .._source.formatting import WIDTH
from .._source.sources import Definition

__all__ = ["COPYRIGHT", "header", "origin"]

COPYRIGHT = "Copyright (c) 2026, the torchvision_layers contributors"

_LEFT_OUT = (
    "The code is that of the package, with its comments. Left out is what only the package calls: the hooks by which "
    "it folds a layer and finds its twin, and private functions that nothing here calls. Where the package builds on "
    "torchvision.ops, a class of its own with the same state stands here."
)
_TWINS = (
    "Every layer is its quantizable twin: of the same results and state_dict, its sums and products made modules that "
    "can be observed. Stubs, fusing and observers are those of torch.ao.quantization."
)


def origin(reference: str, module: ModuleType) -> str:
    """A reference that names no folder of this machine: where it is a whole path, from above its package on."""
    source, _, name = reference.rpartition(":")
    if not Path(source).is_absolute():
        return reference
    parts = Path(source).parts
    return f"{'/'.join(parts[-module.__name__.count('.') - 1 :])}:{name}"


def header(root: Definition, reference: str, docstring: str, quantizable: bool) -> list[str]:
    """The lines of the docstring of a file.

    Args:
        root: what the file is for.
        reference: where it was taken from, as given.
        docstring: of the module that it was taken from.
        quantizable: whether the file is of twins.
    """
    is_class = inspect.isclass(root.value)
    call = f"{root.name}(...)" if is_class else f"{root.name}()"
    form = "in quantizable form " if quantizable else ""
    paragraphs = [
        f"{root.name} {form}in one file that needs torch only.",
        f"Written by torchvision_layers {__version__} from {reference}. {_LEFT_OUT}",
    ]
    paragraphs += [_TWINS] if quantizable else []
    usage = [f"model = {call}", 'model.load_state_dict(torch.load("weights.pth", weights_only=True))']
    if quantizable:
        usage += [
            "model = QuantizableModel(model.eval())",
            "model.fuse_model()",
            'model.qconfig = torch.ao.quantization.get_default_qconfig("x86")',
            "torch.ao.quantization.prepare(model, inplace=True)",
            "model(batch)  # some batches of training images",
            "torch.ao.quantization.convert(model, inplace=True)",
        ]
    lines = []
    for i, paragraph in enumerate(paragraphs):
        wrapped = textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [*([""] if i else []), *wrapped]
    if docstring:
        lines += ["", *docstring.splitlines()]
    about = (
        "A checkpoint, a state_dict, is loaded by" if not quantizable else "From a checkpoint, a state_dict, to int8"
    )
    lines += ["", f"{about}::", "", *(f"    {line}" for line in usage)]
    lines += ["", f"License: BSD-3-Clause. {COPYRIGHT}."]
    raw = "r" if any("\\" in line for line in lines) else ""
    lines[0] = f'{raw}"""{lines[0]}'
    return [*lines, '"""']
