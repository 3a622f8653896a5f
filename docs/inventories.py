"""Intersphinx inventories of the external names in signatures, written here so that builds need no network."""

import zlib
from pathlib import Path

__all__ = ["PROJECTS", "write_inventories"]

_PYTHON = "https://docs.python.org/3/"
_TORCH = "https://docs.pytorch.org/docs/stable/"

#: By project: the address of its pages, and the role and page of each name that signatures link to.
PROJECTS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "python": (
        _PYTHON,
        {
            **{name: ("class", "library/functions.html#$") for name in ("bool", "float", "int", "object", "type")},
            **{name: ("class", "library/stdtypes.html#$") for name in ("dict", "list", "str", "tuple")},
            **{
                f"collections.abc.{name}": ("class", "library/collections.abc.html#$")
                for name in ("Callable", "Collection", "Iterable", "Mapping", "Sequence")
            },
            "AssertionError": ("exception", "library/exceptions.html#$"),
            "Exception": ("exception", "library/exceptions.html#$"),
            "Warning": ("exception", "library/exceptions.html#$"),
            "None": ("data", "library/constants.html#$"),
            "enum.Enum": ("class", "library/enum.html#$"),
            "pathlib.Path": ("class", "library/pathlib.html#$"),
            "typing.Any": ("data", "library/typing.html#$"),
            "typing.Self": ("data", "library/typing.html#$"),
        },
    ),
    "numpy": ("https://numpy.org/doc/stable/", {"numpy.ndarray": ("class", "reference/generated/$.html#$")}),
    "torch": (
        _TORCH,
        {
            "torch.Tensor": ("class", "tensors.html#$"),
            "torch.fx.GraphModule": ("class", "fx.html#$"),
            "torch.device": ("class", "tensor_attributes.html#$"),
            "torch.dtype": ("class", "tensor_attributes.html#$"),
            **{
                f"torch.nn.{name}": ("class", "generated/$.html#$")
                for name in ("BatchNorm2d", "Conv2d", "Flatten", "GELU", "Linear", "Mish", "Module", "ReLU", "SiLU")
            },
        },
    ),
}


def write_inventories(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes an inventory for each project, and returns Sphinx's ``intersphinx_mapping``."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, (address, names) in PROJECTS.items():
        lines = [f"{name} py:{role} 1 {page} -\n" for name, (role, page) in names.items()]
        # In an address, $ is the name. The format abbreviates it at the end only, so names are written out.
        text = "".join(line.replace("$", line.split()[0]) for line in lines)
        header = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        header += "# The remainder of this file is compressed using zlib.\n"
        path = folder / f"{project}.inv"
        path.write_bytes(header.encode() + zlib.compress(text.encode()))
        mapping[project] = (address, str(path))
    return mapping
