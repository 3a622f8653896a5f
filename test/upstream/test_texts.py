"""Generated text: sorted imports, the list on a page, values as Python, docstrings, the checklist."""

from functools import partial

import pytest
import torch
from torch import nn

from tools.upstream.docstrings import layer_docstring
from tools.upstream.edits import add_imports, add_page_entry
from tools.upstream.pull_request import pull_request
from tools.upstream.values import UnwritableError, value_source
from torchvision_layers import nn as tnn

FILE = """\
import os
from functools import lru_cache

import torch
from torch import Tensor

from .b import y


x = 1
"""


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        (
            "from functools import partial",
            "from functools import lru_cache\n",
            "from functools import lru_cache, partial\n",
        ),
        ("from torch import nn", "from torch import Tensor\n", "from torch import nn, Tensor\n"),
        ("import abc", "import os\n", "import abc\nimport os\n"),
        ("import torch.fx", "import torch\n", "import torch\nimport torch.fx\n"),
        ("import torch.nn.functional as F", "import torch\n", "import torch\nimport torch.nn.functional as F\n"),
        (
            "from torchvision import ops",
            "from torch import Tensor\n",
            "from torch import Tensor\nfrom torchvision import ops\n",
        ),
        ("from ..utils import log", "from .b import y\n", "from ..utils import log\nfrom .b import y\n"),
        ("from .c import z", "from .b import y\n", "from .b import y\nfrom .c import z\n"),
        ("import os", "import os\n", "import os\n"),
        ("from torch import Tensor", "import os\n", "import os\n"),
    ],
)
def test_an_import_is_sorted_in(line: str, old: str, new: str) -> None:
    assert add_imports(FILE, [f"{line}\n"]) == FILE.replace(old, new)


def test_an_import_of_a_new_section_is_separated() -> None:
    assert add_imports("import torch\nx = 1\n", ["import os\n"]) == "import os\n\nimport torch\nx = 1\n"
    assert add_imports("import os\n\n\nx = 1\n", ["from .b import y\n"]) == "import os\n\nfrom .b import y\n\n\nx = 1\n"


def test_a_long_import_is_broken() -> None:
    names = ", ".join(f"name_{i:02}" for i in range(13))
    text = add_imports(f"from .b import {names}\n", ["from .b import other_name\n"])
    assert text.splitlines()[0] == "from .b import ("
    assert add_imports(text, ["from .b import other_name\n"]) == text


def test_a_page_lists_each_name_once_in_order() -> None:
    page = "Layers\n------\n\n.. autosummary::\n    :template: class.rst\n\n    Aa\n    MLP\n    Zz\n\n.. else::\n"
    assert add_page_entry(page, "mm") == page.replace("    Zz", "    mm\n    Zz")
    assert add_page_entry(page, "MLP") == page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (nn.ReLU6, "nn.ReLU6"),
        (nn.BatchNorm2d(77), "nn.BatchNorm2d(77)"),
        (nn.GroupNorm(2, 4), "nn.GroupNorm(2, 4)"),
        (nn.PReLU(4), "nn.PReLU(num_parameters=4)"),
        (partial(nn.GroupNorm, 2, eps=1e-3), "partial(nn.GroupNorm, 2, eps=0.001)"),
        (tnn.SqueezeExcitation, "ops.SqueezeExcitation"),
        (nn.Conv2d(2, 3, 3, padding=1), "nn.Conv2d(2, 3, 3, padding=1)"),
        ((1, 2), "(1, 2)"),
        ((1,), "(1,)"),
        ([7, "x"], "[7, 'x']"),
        (float("nan"), 'float("nan")'),
        (torch.relu, "torch.relu"),
    ],
)
def test_a_value_has_a_source(value: object, text: str) -> None:
    assert value_source(value) == text


@pytest.mark.parametrize(
    "value", [lambda: None, nn.Sequential(nn.ReLU()), tnn.ConvNormAct, tnn.LayerScale(3), object()]
)
def test_a_value_without_a_short_form_raises(value: object) -> None:
    with pytest.raises(UnwritableError):
        value_source(value)


def test_a_docstring_has_types_and_does_not_mention_this_package() -> None:
    text = layer_docstring(tnn.SqueezeExcitation, [])
    assert "    input_channels (int): " in text
    assert (
        "    activation (Callable[..., torch.nn.Module], optional): :math:`\\delta`. Default: ``torch.nn.ReLU``.\n"
        in text
    )
    assert "    device (torch.device or str or int, optional): " in text
    assert "torchvision" not in text


def test_an_item_is_ticked_if_every_case_passed() -> None:
    record = {
        "fx": {"default[train]": "passed", "default[eval]": "failed: 3 != 4"},
        "script": {"default": "not applicable: has no code", "other": "passed"},
        "export": {"default": "not applicable: has no code"},
        "reference": {"default": "passed"},
    }
    text = pull_request("X", "Does it.", 5, record, is_replacement=False, models=["torchvision/models/x.py"])
    assert "- [ ] torch.fx (`fx`): 1 of 2 cases passed; `fx` on default[eval] failed: 3 != 4\n" in text
    assert "- [x] TorchScript (`script`): 1 of 1 cases passed; 1 not applicable: has no code\n" in text
    assert "- [ ] torch.export (`export`): 0 of 0 cases passed; 1 not applicable: has no code\n" in text
    assert (
        "- [ ] values and accuracy unchanged (`reference`, `golden`): 1 of 1 cases passed; no record of `golden`\n"
        in text
    )
    assert "- [x] tests: 5 cases in" in text
    assert "leaves classes of the same name in models alone: `torchvision/models/x.py`." in text
