"""Shape strategies of the layers of vision transformers."""

from typing import Any

from hypothesis import strategies as st

from torchvision_layers.testing import ShapeExample

from .shape_strategies import BATCH, IMAGE, SIZE, width

__all__ = ["attention", "classifier_head", "encoder_block", "gated_mlp", "patch_embedding"]


@st.composite
def patch_embedding(draw: st.DrawFn) -> ShapeExample:
    """Images that patches cover, and others."""
    channels, embed_dim, patch = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    stride, padding = draw(st.integers(1, patch)), draw(st.integers(0, patch - 1))
    kwargs = {"in_channels": channels, "embed_dim": embed_dim, "patch_size": patch}
    kwargs |= {"stride": stride, "padding": padding}
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    sides = []
    for size in shape[2:]:
        starts = range(-padding, size + padding - patch + 1, stride)
        covered = {pixel for start in starts for pixel in range(start, start + patch)}
        if not starts or not covered >= set(range(size)) or (size == 0 and shape[0] > 0):
            return ShapeExample(kwargs, shape, None)
        sides.append(len(starts))
    out = (shape[0], sides[0] * sides[1], embed_dim)
    return ShapeExample(kwargs, shape, out if shape[1] == channels else None)


@st.composite
def attention(draw: st.DrawFn) -> ShapeExample:
    heads = draw(st.integers(1, 3))
    channels = heads * draw(st.integers(1, 3))
    kwargs: dict[str, Any] = {"embed_dim": channels, "num_heads": heads, "bias": draw(st.booleans())}
    return _tokens(draw, kwargs, channels)


@st.composite
def encoder_block(draw: st.DrawFn) -> ShapeExample:
    heads = draw(st.integers(1, 3))
    channels = heads * draw(st.integers(1, 3))
    kwargs: dict[str, Any] = {"num_heads": heads, "hidden_dim": channels, "mlp_dim": draw(st.integers(1, 5))}
    return _tokens(draw, kwargs, channels)


def _tokens(draw: st.DrawFn, kwargs: dict[str, Any], channels: int) -> ShapeExample:
    """Sequences of any length, or without the dimension of the tokens."""
    shape = (draw(BATCH), *draw(st.lists(SIZE, max_size=2)), draw(width(channels)))
    return ShapeExample(kwargs, shape, shape if len(shape) == 3 and shape[-1] == channels else None)


@st.composite
def gated_mlp(draw: st.DrawFn) -> ShapeExample:
    features, hidden, out = (draw(st.integers(1, 6)) for _ in range(3))
    kwargs: dict[str, Any] = {"in_channels": features, "hidden_channels": [hidden, out], "bias": draw(st.booleans())}
    shape = (*draw(st.lists(SIZE, max_size=3)), draw(width(features)))
    return ShapeExample(kwargs, shape, (*shape[:-1], out) if shape[-1] == features else None)


@st.composite
def classifier_head(draw: st.DrawFn) -> ShapeExample:
    channels, classes = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kwargs: dict[str, Any] = {"in_channels": channels, "num_classes": classes}
    pools = draw(st.booleans())
    if not pools:
        kwargs["pool_layer"] = None
    shape = (draw(BATCH), draw(width(channels)), *(draw(IMAGE) if pools else ()))
    fits = shape[1] == channels and 0 not in shape[2:]
    return ShapeExample(kwargs, shape, (shape[0], classes) if fits else None)
