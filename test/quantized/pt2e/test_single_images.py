"""Graphs for training, whose guards of torch would exclude a single image, take one if the model does."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchvision_layers.quantized import convert, prepare_qat
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, without_quantization

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(3, 3, 24, 20, generator=torch.Generator().manual_seed(1))


def masked(attention: nn.Module, tokens: Tensor) -> Tensor:
    return attention(tokens, tokens, tokens, key_padding_mask=tokens[..., 0] > 1)[0]


LAYERS = {
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), lambda m, t: m(t)),
    "decoder": (nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), lambda m, t: m(t, t)),
    "attention": (nn.MultiheadAttention(8, 2, batch_first=True), masked),
}


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_trained_transformer_takes_one_image(name: str, images: int) -> None:
    layer, call = LAYERS[name]

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.head(call(module.layer, module.patches(x).flatten(2).mT).mean(1))

    model = FunctionModule(forward, patches=nn.Conv2d(3, 8, 4, 4), layer=layer, head=nn.Linear(8, 5))
    graph = prepare_qat(model, X[:images], engine="pt2e")
    graph(X[:1]).sum().backward()
    graph(X).sum().backward()
    int8 = convert(graph)
    torch.testing.assert_close(int8(X)[:1], int8(X[:1]))
    assert decibels(graph.eval()(LARGER), int8(LARGER)) >= 40
    without_quantization(graph)
    for x in (X[:1], X, LARGER):
        torch.testing.assert_close(graph(x), model.eval()(x), atol=1e-5, rtol=1e-4)


def test_graph_refuses_one_image_that_the_forward_treats_differently() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        y = functional.relu(module.conv(x))
        return y.mean((2, 3)) if y.shape[0] > 1 else y.amax((2, 3))

    model = FunctionModule(forward, conv=nn.Conv2d(3, 4, 3))
    graph = prepare_qat(model, X, engine="pt2e")
    graph(X)
    with pytest.raises(ValueError, match="at least two images|sizes that the forward of the model supports"):
        convert(graph)(X[:1])
