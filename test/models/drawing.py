"""The strategy that draws models: steps of a ``forward``, blocks with steps of their own, inputs and a state."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from . import arithmetic, heads, steps, tokens, writes
from .body import Body
from .choices import Choices
from .description import Image, Model, ModuleClass
from .shapes import Map, Sizes, smallest
from .states import STATES

__all__ = ["models"]

#: The size that calibrates, a larger one, and one with another ratio.
_SIZES = (
    ((16, 16), (20, 24), (12, 17)),
    ((15, 18), (23, 19), (14, 21)),
    ((13, 13), (16, 15), (19, 12)),
    ((24, 16), (17, 33), (16, 16)),
)


def _block(body: Body) -> None:
    """A child with a ``forward`` of its own, which may be called twice."""
    x = body.pick()
    inner = Body(
        body.choices, f"Block{len(body.classes) + 1}", [Map("x", x.channels, x.sizes)], body.classes, body.level + 1
    )
    _add_steps(inner, 3)
    y = inner.maps[-1]
    inner.name = f"Block{len(body.classes) + 1}"  # blocks within it come first
    inner.finish(("x",), y.name)
    name = body.add_member("block", f"{inner.name}()")
    result = body.let(f"{name}({x.name})", y.channels, y.sizes)
    if y.channels == x.channels and smallest(y.sizes) >= 8 and body.choices.happens(0.3):
        again = body.choices.pick(name, body.add_member("block", f"{inner.name}()"))
        if y.sizes == x.sizes:
            body.let(f"{again}({result.name})", y.channels, y.sizes)


_STEPS: tuple[Callable[[Body], None], ...] = (
    *[steps.call_layer] * 5,
    *(steps.call_function, steps.call_again, steps.call_list, steps.resample),
    *(
        arithmetic.residual,
        arithmetic.add,
        arithmetic.residual,
        arithmetic.concatenate,
        arithmetic.gate,
        arithmetic.scale,
    ),
    *(writes.split, writes.shuffle, writes.write, writes.write_through_view, writes.write_through_view),
    *(tokens.attend, tokens.mix, _block, _block, steps.call_shared_weight),
)


def _add_steps(body: Body, most: int) -> None:
    available = _STEPS if body.level < 2 else [step for step in _STEPS if step is not _block]
    for _ in range(most):
        if not body.choices.happens(0.85):  # hypothesis shrinks by leaving out this choice with the step after it
            break
        body.choices.pick_from(available)(body)


@st.composite
def models(draw: Callable[[Any], Any]) -> Model:
    """Models of up to eight steps after the stem, with their inputs and states."""
    choices = Choices(draw)
    sizes: Sizes = choices.pick(*_SIZES)
    classes: list[ModuleClass] = []
    body = Body(choices, "Model", [Map("x", 3, sizes)], classes)
    images, parameters = [Image("x", 3)], ["x"]
    steps.call_layer(body) if choices.happens(0.3) else _add_stem(body)
    form = choices.pick("one", "one", "one", "one", "one", "two", "default")
    if form != "one":
        images.append(Image("depth", 1))
        parameters.append("depth" if form == "two" else choices.pick("depth: Tensor | None = None", "depth=None"))
        _add_depth(body, sizes, is_optional=form == "default")
    _add_steps(body, 8)
    if choices.happens(0.1):
        heads.add_unused_head(body)
    output = heads.add_outputs(body)
    body.finish(tuple(parameters), output)
    states = [state.__name__ for state in STATES[1:] if choices.happens(0.2)]
    if choices.happens(0.9):
        states.insert(0, STATES[0].__name__)
    return Model(
        tuple(classes),
        tuple(images),
        tuple(states),
        choices.count(0, 9),
        sizes,
        has_keywords=form != "one" and choices.happens(0.5),
    )


def _add_stem(body: Body) -> None:
    """A convolution, so that the model has something to quantize."""
    x = body.pick()
    name = body.add_member(
        "stem",
        body.choices.pick(
            "nn.Conv2d(3, 8, 3, padding=1)",
            "tnn.ConvNormAct(3, 8)",
            "nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))",
        ),
    )
    body.let(f"{name}({x.name})", 8, x.sizes)


def _add_depth(body: Body, sizes: Sizes, is_optional: bool) -> None:
    """A second input, which a convolution brings to the channels of the first."""
    x = body.maps[-1]
    name = body.add_member("depth", "nn.Conv2d(1, 8, 3, padding=1)")
    if x.channels != 8 or x.sizes != sizes:
        body.do(
            f"depth = {name}(depth)"
            if not is_optional
            else f"if depth is not None:\n    {x.name} = {x.name} + {name}(depth).mean()"
        )
    elif is_optional:
        body.do(f"if depth is not None:\n    {x.name} = {x.name} + {name}(depth)")
    else:
        body.let(f"{x.name} + {name}(depth)", 8, sizes)
