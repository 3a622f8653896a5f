"""Old paths of promoted layers."""

import io

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

NAMES = ["GlobalResponseNorm", "SWSConv2d", "UniversalInvertedBottleneck", "WSConv2d", "stochastic_depth_schedule"]
# The module of each class before its promotion, and arguments.
CLASSES = {
    tnn.GlobalResponseNorm: ("global_response_norm", (8, 1e-6, 1)),
    tnn.SWSConv2d: ("weight_standardization", (8, 6, 3)),
    tnn.UniversalInvertedBottleneck: ("universal_inverted_bottleneck", (8, 6, 3, 5)),
    tnn.WSConv2d: ("weight_standardization", (8, 6, 3)),
}


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


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_from_before_the_promotion_loads(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments = CLASSES[cls]
    module = f"torchvision_layers.experimental.nn.{name}"
    model = nn.Sequential(cls(*arguments), nn.ReLU()).eval()
    buffer, x = io.BytesIO(), torch.randn(2, 8, 6, 7)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "__module__", module)  # pickle writes it, and looks it up
        with pytest.warns(FutureWarning, match=module):
            torch.save(model, buffer)
    assert module.encode() in buffer.getvalue()
    buffer.seek(0)
    with pytest.warns(FutureWarning, match=f"{module}.{cls.__name__} will be removed in 0.2"):
        loaded = torch.load(buffer, weights_only=False)
    assert type(loaded[0]) is cls
    assert torch.equal(loaded(x), model(x))


def test_state_dicts_from_before_the_promotion_load() -> None:
    conv = {"weight": torch.randn(6, 8, 3, 3), "bias": torch.randn(6)}
    norm = {"weight": torch.randn(8), "bias": torch.randn(8)}
    for cls, state in ((tnn.WSConv2d, conv), (tnn.SWSConv2d, conv), (tnn.GlobalResponseNorm, norm)):
        layer = cls(*CLASSES[cls][1])
        layer.load_state_dict(state)
        assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
        assert layer.state_dict()._metadata == {"": {"version": 1}}
