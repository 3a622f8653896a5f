"""The texts that are put together: imports in their order, lists of a page, values as Python, the checklist."""

from functools import partial

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.upstream._docstrings import for_layer
from torchvision_layers.upstream._edits import Import, with_import, with_page_entry
from torchvision_layers.upstream._pull_request import pull_request
from torchvision_layers.upstream._samples import UnwritableError, as_source

FILE = """\
import os
from functools import lru_cache

import torch
from torch import Tensor

from .b import y


x = 1
"""


@pytest.mark.parametrize(
    ("new", "old_line", "line"),
    [
        (
            Import("functools", "partial"),
            "from functools import lru_cache\n",
            "from functools import lru_cache, partial\n",
        ),
        (Import("torch", "nn"), "from torch import Tensor\n", "from torch import nn, Tensor\n"),
        (Import("abc"), "import os\n", "import abc\nimport os\n"),
        (Import("torch.fx"), "import torch\n", "import torch\nimport torch.fx\n"),
        (Import("torch.nn.functional as F"), "import torch\n", "import torch\nimport torch.nn.functional as F\n"),
        (Import("..utils", "log"), "from .b import y\n", "from ..utils import log\nfrom .b import y\n"),
        (Import(".c", "z"), "from .b import y\n", "from .b import y\nfrom .c import z\n"),
        (Import("os"), "import os\n", "import os\n"),
        (Import("torch", "Tensor"), "import os\n", "import os\n"),
    ],
)
def test_an_import_stands_in_its_place(new: Import, old_line: str, line: str) -> None:
    assert with_import(FILE, new) == FILE.replace(old_line, line)


def test_an_import_of_a_new_group_stands_apart() -> None:
    assert with_import("import torch\n", Import("os")) == "import os\n\nimport torch\n"
    assert with_import("import os\n", Import(".b", "y")) == "import os\n\nfrom .b import y\n"
    assert with_import("x = 1\n", Import("os")) == "import os\n\n\nx = 1\n"


def test_an_import_that_becomes_too_long_is_broken() -> None:
    names = [f"name_{i:02}" for i in range(13)]
    before = f"from .b import {', '.join(names)}\n"
    after = with_import(before, Import(".b", "other_name"))
    assert after.splitlines()[0] == "from .b import ("
    assert with_import(after, Import(".b", "other_name")) == after


def test_a_page_lists_a_name_once_and_in_order() -> None:
    page = "Layers\n------\n\n.. autosummary::\n    :template: class.rst\n\n    Aa\n    MLP\n    Zz\n\n.. else::\n"
    assert with_page_entry(page, "mm") == page.replace("    Zz", "    mm\n    Zz")
    assert with_page_entry(page, "MLP") == page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (nn.ReLU6, "nn.ReLU6"),
        (nn.BatchNorm2d(77), "nn.BatchNorm2d(77)"),
        (nn.GroupNorm(2, 4), "nn.GroupNorm(2, 4)"),
        (nn.PReLU(4), "nn.PReLU(num_parameters=4)"),
        (partial(nn.GroupNorm, 2, eps=1e-3), "partial(nn.GroupNorm, 2, eps=0.001)"),
        (tnn.SqueezeExcitation, "ops.SqueezeExcitation"),
        ((1, 2), "(1, 2)"),
        ((1,), "(1,)"),
        ([7, "x"], '[7, "x"]'),
        (float("nan"), 'float("nan")'),
        (torch.relu, "torch.relu"),
    ],
)
def test_a_value_is_written_as_python(value: object, text: str) -> None:
    assert as_source(value) == text


@pytest.mark.parametrize(
    "value", [lambda: None, nn.Sequential(nn.ReLU()), tnn.ConvNormAct, tnn.LayerScale(3), object()]
)
def test_a_value_without_a_short_form_is_refused(value: object) -> None:
    with pytest.raises(UnwritableError):
        as_source(value)


def test_the_docstring_names_types_and_drops_what_is_of_this_package() -> None:
    text = for_layer(tnn.SqueezeExcitation.__doc__ or "", tnn.SqueezeExcitation, [])
    assert "        input_channels (int): Channels of the input and of the output.\n" in text
    assert (
        "        activation (Callable[..., torch.nn.Module], optional): :math:`\\delta`. Default: ``torch.nn.ReLU``.\n"
        in text
    )
    assert "        device (torch.device or str or int, optional): Where" in text
    assert "Calls and checkpoints" not in text


def test_an_item_is_checked_only_where_every_cell_passed() -> None:
    record = {
        "fx": {"default[train]": "passed", "default[eval]": "failed: 3 != 4"},
        "script": {"default": "not applicable: has no code", "other": "passed"},
        "export": {"default": "not applicable: has no code"},
        "reference": {"default": "passed"},
    }
    text = pull_request("X", "Does it.", {"a.py": "the layer"}, record, 2, 3, False, ["torchvision/models/x.py"])
    assert "- [ ] torch.fx (`fx`): 1 of 2 cells passed; `fx` on default[eval] failed: 3 != 4\n" in text
    assert "- [x] TorchScript (`script`): 1 of 1 cells passed; 1 not applicable: has no code\n" in text
    assert "- [ ] torch.export (`export`): 0 of 0 cells passed; 1 not applicable: has no code\n" in text
    assert (
        "- [ ] values and accuracy unchanged (`reference`, `golden`): 1 of 1 cells passed; no record of `golden`\n"
        in text
    )
    assert "in models, which this does not touch: `torchvision/models/x.py`." in text
