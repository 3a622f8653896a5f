"""Reference models compared with timm's, whose weights load through a map of keys."""

import pytest
import torch
from models import MODELS, build_model
from models.timm_weights import NAMES, from_timm

from ._support.pairs import fill

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_timm_load_with_equal_outputs(name: str) -> None:
    """The numbers of parameters are equal and, within rounding, the outputs."""
    theirs, ours = fill(timm.create_model(NAMES[name], pretrained=False)).eval(), build_model(name, 1000).eval()
    ours.load_state_dict(from_timm(name, theirs.state_dict()), strict=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, output = theirs(x), ours(x)
    assert (expected[0] - expected[1]).abs().mean() > 1e-3 * expected.std()  # the output depends on the image
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def test_names_are_those_of_models() -> None:
    assert NAMES.keys() <= MODELS.keys()
