"""Old paths of promoted layers."""

import io

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

NAMES = ["SWSConv2d", "WSConv2d", "stochastic_depth_schedule"]
OLD_MODULE = "torchvision_layers.experimental.nn.weight_standardization"


@pytest.mark.parametrize("name", NAMES)
def test_an_old_name_warns_and_is_the_new_one(name: str) -> None:
    assert name in tnn.__all__
    assert name not in enn.__all__
    message = (
        rf"experimental\.nn\.{name} will be removed in 0\.2: {name} is stable, use torchvision_layers\.nn\.{name}$"
    )
    with pytest.warns(FutureWarning, match=message) as warned:
        old = getattr(enn, name)
    assert warned[0].filename == __file__
    assert old is getattr(tnn, name)


def test_an_import_of_an_old_name_warns() -> None:
    with pytest.warns(FutureWarning, match="use torchvision_layers.nn.WSConv2d") as warned:
        from torchvision_layers.experimental.nn import WSConv2d
    assert {warning.filename for warning in warned} == {__file__}
    assert isinstance(tnn.SWSConv2d(4, 4, 3), WSConv2d)
    assert isinstance(WSConv2d(4, 4, 3), tnn.WSConv2d)


@pytest.mark.parametrize("name", ["WSConv3d", "promoted_", "standardize"])
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"torchvision_layers\.experimental\.nn' has no attribute '{name}'"):
        getattr(enn, name)


@pytest.mark.parametrize("cls", [tnn.WSConv2d, tnn.SWSConv2d])
def test_a_file_from_before_the_promotion_loads(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(cls(3, 8, 3, bias=False), nn.ReLU()).eval()
    buffer, x = io.BytesIO(), torch.randn(2, 3, 8, 8)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "__module__", OLD_MODULE)  # pickle writes it, and looks it up
        with pytest.warns(FutureWarning, match=OLD_MODULE):
            torch.save(model, buffer)
    assert OLD_MODULE.encode() in buffer.getvalue()
    buffer.seek(0)
    with pytest.warns(FutureWarning, match=f"{OLD_MODULE}.{cls.__name__} will be removed in 0.2"):
        loaded = torch.load(buffer, weights_only=False)
    assert type(loaded[0]) is cls
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("cls", [tnn.WSConv2d, tnn.SWSConv2d])
def test_a_state_dict_from_before_the_promotion_loads(cls: type[tnn.WSConv2d]) -> None:
    state = {"weight": torch.randn(6, 4, 3, 3), "bias": torch.randn(6)}
    layer = cls(4, 6, 3)
    layer.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    assert layer.state_dict()._metadata == {"": {"version": 1}}
