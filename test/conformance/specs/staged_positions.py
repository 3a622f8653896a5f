"""Staged position embeddings."""

from functools import partial

from hypothesis import strategies as st

from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample, ShapeExample

from .. import window_reference
from . import invalid_inputs
from .shape_strategies import BATCH, IMAGE, one_or_each, width

__all__ = ["SPECS"]


def _no_pixels(channels: int) -> tuple[BadInput, ...]:
    return tuple(
        BadInput(InvalidInput.NO_PIXELS, (2, channels, *image), ValueError, "input must have at least one pixel")
        for image in ((0, 9), (7, 0))
    )


@st.composite
def _embedded(draw: st.DrawFn, is_learned: bool) -> ShapeExample:
    channels = draw(st.integers(1, 3)) * (1 if is_learned else 4)
    kwargs = {"channels": channels}
    if is_learned:
        kwargs["grid_size"] = draw(one_or_each(st.integers(1, 5), 2))
    shape = (draw(BATCH), draw(width(channels)), *draw(IMAGE))
    return ShapeExample(kwargs, shape, shape if shape[1] == channels and 0 not in shape[2:] else None)


SPECS = (
    LayerSpec(
        enn.PositionEmbedding2d,
        (
            Sample(
                "trained grid",
                {"channels": 4, "grid_size": (7, 9)},
                (2, 4, 7, 9),
                window_reference.position_embedding,
                reads_mode=False,
            ),
            Sample(
                "other grid",
                {"channels": 4, "grid_size": 3},
                (2, 4, 5, 8),
                window_reference.position_embedding,
                reads_mode=False,
            ),
        ),
        (*invalid_inputs.channels("channels"), *invalid_inputs.numbers_each(2, "grid_size")),
        (*invalid_inputs.shapes(4, (7, 9)), *invalid_inputs.types((2, 4, 7, 9)), *_no_pixels(4)),
        shape_strategy=_embedded(is_learned=True),
    ),
    LayerSpec(
        enn.SinePositionEmbedding2d,
        (
            Sample(
                "default", {"channels": 8}, (2, 8, 7, 9), window_reference.sine_position_embedding, reads_mode=False
            ),
            Sample(
                "absolute",
                {"channels": 12, "temperature": 20.0, "normalize": False},
                (2, 12, 5, 4),
                partial(window_reference.sine_position_embedding, temperature=20.0, normalize=False),
                reads_mode=False,
            ),
        ),
        (
            *invalid_inputs.channels("channels"),
            BadArguments(InvalidInput.CHANNELS, {"channels": 6}, ValueError, "channels must be divisible by 4.*got 6"),
            BadArguments(InvalidInput.CHANNELS, {"temperature": 0}, ValueError, "temperature must be positive, got 0"),
            BadArguments(
                InvalidInput.CHANNELS, {"temperature": invalid_inputs.NAN}, ValueError, "temperature must be finite"
            ),
            BadArguments(InvalidInput.CHANNELS, {"normalize": 1}, TypeError, "normalize must be True or False, got 1"),
        ),
        (*invalid_inputs.shapes(8, (7, 9)), *invalid_inputs.not_floating((2, 8, 7, 9)), *_no_pixels(8)),
        shape_strategy=_embedded(is_learned=False),
    ),
)
