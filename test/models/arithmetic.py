"""Steps of a ``forward`` that join images: sums, products, concatenations and gates."""

from .blocks import any_layer, conv_norm_act
from .body import Body
from .layers import norm, plain_conv
from .shapes import Map

__all__ = ["add", "concatenate", "gate", "residual", "scale"]

_SUMS = (
    "{} + {}",
    "torch.add({}, {})",
    "{}.add({})",
    "{} - {}",
    "{} * {}",
    "torch.maximum({}, {})",
    "operator.add({}, {})",
)
_IN_PLACE = ("{} += {}", "{}.add_({})", "{} *= {}", "{} -= {}", "{}.mul_({})")


def residual(body: Body) -> None:
    """A branch that keeps the shape of its input, and a sum of both."""
    x = body.pick()
    first = conv_norm_act(body.choices, x.channels, x.sizes) if body.choices.happens(0.5) else None
    if first is None or first.sizes != x.sizes:
        first = plain_conv(body.choices, x.channels, x.sizes)
    y = body.let(f"{body.add_member('layer', first.code)}({x.name})", first.channels, x.sizes)
    second = plain_conv(body.choices, y.channels, y.sizes, x.channels)
    y = body.let(f"{body.add_member('layer', second.code)}({y.name})", x.channels, x.sizes)
    if body.choices.happens(0.5):
        y = body.let(
            f"{body.add_member('norm', norm(body.choices, x.channels, x.sizes).code)}({y.name})", x.channels, x.sizes
        )
    y = _join(body, y, x)
    if body.choices.happens(0.6):
        body.let(
            body.choices.pick("F.relu({})", "F.relu({}, inplace=True)", "F.relu6({})").format(y.name),
            y.channels,
            y.sizes,
        )


def add(body: Body) -> None:
    """A sum or product of two variables of equal shapes."""
    x = body.pick()
    others = [other for other in body.others(x) if other.name != x.name]
    if not others:
        residual(body)
    else:
        _join(body, x, body.choices.pick_from(others))


def _join(body: Body, x: Map, y: Map) -> Map:
    if body.choices.happens(0.3):
        form = body.choices.pick(*_IN_PLACE)
        body.do(form.format(x.name, y.name))
        body.renew(x)
        return x
    form = body.choices.pick(*[_SUMS[0]] * 4, *_SUMS[1:])
    return body.let(form.format(x.name, y.name), x.channels, x.sizes)


def concatenate(body: Body) -> None:
    """A concatenation of channels, of branches or of earlier variables."""
    x = body.pick()
    maps = [x]
    for _ in range(body.choices.count(1, 2)):
        others = [other for other in body.maps if other.sizes == x.sizes and other not in maps]
        if others and body.choices.happens(0.5):
            maps.append(body.choices.pick_from(others))
            continue
        layer = any_layer(body.choices, x.channels, x.sizes)
        if layer.sizes != x.sizes:
            layer = plain_conv(body.choices, x.channels, x.sizes)
        maps.append(body.let(f"{body.add_member('branch', layer.code)}({x.name})", layer.channels, x.sizes))
    names = ", ".join(value.name for value in maps)
    form = body.choices.pick(
        "torch.cat([{}], 1)",
        "torch.cat(({}), dim=1)",
        "torch.concat([{}], dim=-3)",
        "torch.cat(tensors=[{}], dim=1)",
        "torch.ops.aten.cat([{}], 1)",
    )
    body.let(form.format(names), sum(value.channels for value in maps), x.sizes)


def gate(body: Body) -> None:
    """Squeeze and excitation by hand, or a gate for each pixel."""
    x = body.pick()
    pooled = body.choices.pick(
        "F.adaptive_avg_pool2d({}, 1)",
        "{}.mean((2, 3), keepdim=True)",
        "{}.mean([-2, -1], keepdim=True)",
        "torch.mean({}, dim=(2, 3), keepdim=True)",
        "{}",
    )
    squeezed, reduce = body.unused("s"), body.add_member("reduce", f"nn.Conv2d({x.channels}, 4, 1)")
    expand = body.add_member("expand", f"nn.Conv2d(4, {x.channels}, 1)")
    inner = body.choices.pick("F.relu({})", "F.silu({})", "F.relu({}, inplace=True)").format(f"{reduce}({squeezed})")
    outer = body.choices.pick("torch.sigmoid({})", "F.hardsigmoid({})", "{}.sigmoid()", "torch.tanh({})").format(
        f"{expand}({inner})"
    )
    body.do(f"{squeezed} = {pooled.format(x.name)}")
    form = body.choices.pick(
        "{x} * {s}", "{s} * {x}", "{x}.mul({s})", "torch.mul({x}, {s})", "{x} * {s}.expand_as({x})"
    )
    body.let(form.format(x=x.name, s=outer), x.channels, x.sizes)


def scale(body: Body) -> None:
    """Arithmetic with numbers, parameters or buffers."""
    x, shape = body.pick(), None
    form = body.choices.pick("number", "parameter", "buffer", "vector")
    if form == "number":
        code = body.choices.pick(
            "2 * {}", "{} * 0.5", "{} + 1", "{} / 3", "1 - {}", "-{}", "{}.mul(2.0).add(1.0)", "{} ** 2"
        )
        body.let(code.format(x.name), x.channels, x.sizes)
        return
    shape = f"1, {x.channels}, 1, 1" if form != "vector" else f"{x.channels}"
    if form == "buffer":
        name = body.unused("mean")
        body.members.append(f"self.register_buffer('{name}', torch.randn({shape}))")
        body.let(f"({x.name} - self.{name}) / 2", x.channels, x.sizes)
        return
    name = body.add_member("gamma", f"nn.Parameter(torch.randn({shape}))")
    read = name if form == "parameter" else body.choices.pick(f"{name}[:, None, None]", f"{name}.view(1, -1, 1, 1)")
    body.let(body.choices.pick(f"{x.name} * {read}", f"{read} * {x.name}", f"{x.name} + {read}"), x.channels, x.sizes)
