"""The reference models against torchvision's of the same name."""

import pytest
import torch
import torchvision
from models import MODELS, build_model

SHARED = sorted(name for name in MODELS if hasattr(torchvision.models, name))


def test_shared_models() -> None:
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_torchvision_checkpoints_load_and_give_equal_outputs(name: str) -> None:
    """Strictly, and bit for bit in float32 eval, with running statistics that no default could give."""
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if key.endswith("running_mean"):
                value.uniform_(-0.2, 0.2)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
        ours = build_model(name, num_classes=1000).eval()
        x = torch.randn(2, 3, 65, 96)
        assert not torch.equal(ours(x), theirs(x))
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert torch.equal(ours(x), theirs(x))


def test_variants_differ_where_they_say() -> None:
    plain, squeezed = build_model("resnet18", 10), build_model("se_resnet18", 10)
    extra = set(squeezed.state_dict()) - set(plain.state_dict())
    assert extra
    assert all(".se.fc" in key for key in extra)


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(ValueError, match="model must be one of .*resnet18.*; got 'resnet19'"):
        build_model("resnet19", 10)
