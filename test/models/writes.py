"""Steps of a ``forward`` that slice images, or write into them."""

from .body import Body
from .layers import plain_conv

__all__ = ["shuffle", "split", "write", "write_through_view"]


def split(body: Body) -> None:
    """Parts of the channels, one of which is changed."""
    x = body.pick()
    if x.channels % 2:
        shuffle(body)
        return
    half = x.channels // 2
    first, second = body.unused("x"), body.unused("x")
    form = body.choices.pick(
        f"{first}, {second} = {x.name}.chunk(2, dim=1)",
        f"{first}, {second} = torch.split({x.name}, {half}, dim=1)",
        f"{first}, {second} = {x.name}[:, :{half}], {x.name}[:, {half}:]",
        f"{first}, {second} = {x.name}[:, ::2], {x.name}[:, 1::2]",
        f"{first}, {second} = torch.tensor_split({x.name}, 2, dim=1)",
        f"{first}, {second} = {x.name}.narrow(1, 0, {half}), {x.name}.narrow(1, {half}, {half})",
    )
    body.do(form)
    layer = plain_conv(body.choices, half, x.sizes, half)
    name = body.add_member("layer", layer.code)
    joined = body.choices.pick(
        f"torch.cat([{first}, {name}({second})], dim=1)",
        f"torch.cat([{name}({first}), {second}], dim=1)",
        f"torch.cat([{second}, {name}({first}) + {second}], dim=1)",
        f"torch.cat([{first} * torch.sigmoid({name}({second})), {first}], dim=1)",
    )
    body.let(joined, x.channels, x.sizes)


def shuffle(body: Body) -> None:
    """Views that move channels."""
    x = body.pick()
    if x.channels % 2:
        body.let(f"{x.name}.flip(1)", x.channels, x.sizes)
        return
    form = body.choices.pick("view", "roll", "flip", "permute", "index")
    if form == "view":
        n, c, h, w = (body.unused(name) for name in "nchw")
        body.do(f"{n}, {c}, {h}, {w} = {x.name}.{body.choices.pick('shape', 'size()')}")
        moved = body.choices.pick("view", "reshape")
        body.let(
            f"{x.name}.{moved}({n}, 2, {c} // 2, {h}, {w}).transpose(1, 2).reshape({n}, {c}, {h}, {w})",
            x.channels,
            x.sizes,
        )
    elif form == "roll":
        body.let(f"torch.roll({x.name}, 1, dims=1)", x.channels, x.sizes)
    elif form == "flip":
        body.let(f"{x.name}.flip(-1)", x.channels, x.sizes)
    elif form == "permute":
        linear = body.add_member("linear", f"nn.Linear({x.channels}, {x.channels})")
        norm = body.add_member("norm", f"nn.LayerNorm({x.channels})")
        inner = body.choices.pick(f"{linear}({{}})", f"F.gelu({linear}({norm}({{}})))", f"{norm}({{}})")
        body.let(f"{inner.format(f'{x.name}.permute(0, 2, 3, 1)')}.permute(0, 3, 1, 2)", x.channels, x.sizes)
    else:
        body.let(f"{x.name}[:, [{', '.join(map(str, reversed(range(x.channels))))}]]", x.channels, x.sizes)


def write(body: Body) -> None:
    """An operation in place on a whole image, which may be read again under another name."""
    x = body.pick()
    code = body.choices.pick(
        "{}.mul_(0.5)",
        "{}.clamp_(min=0)",
        "{}.relu_()",
        "{} += 1",
        "{} *= 2",
        "F.relu({}, inplace=True)",
        "{}.sigmoid_()",
        "{}.add_(0.1)",
    )
    if body.choices.happens(0.3):
        y = body.let(f"{x.name}.clone()", x.channels, x.sizes)
        body.do(code.format(y.name))
    else:
        body.do(code.format(x.name))
        body.renew(x)


def write_through_view(body: Body) -> None:
    """A write into a part of an image."""
    x = body.pick()
    part = body.choices.pick("[:, :2]", "[:, 0]", "[..., 0]", "[:, :, 1:]", "[:, 1::2]")
    form = body.choices.pick("set", "update", "view", "mask", "copy", "flat")
    if form == "set":
        body.do(f"{x.name}{part} = 0")
    elif form == "update":
        body.do(f"{x.name}{part} {body.choices.pick('+= 1', '*= 2', '*= -1')}")
    elif form == "view":
        y = body.unused("part")
        body.do(f"{y} = {x.name}{part}\n{y}.{body.choices.pick('zero_()', 'mul_(0.5)', 'relu_()', 'neg_()')}")
    elif form == "mask":
        body.do(f"{x.name}[{x.name} < 0] = 0")
    elif form == "copy":
        body.do(f"{x.name}{part} = {body.choices.pick('F.relu', 'torch.tanh')}({x.name}{part})")
    else:
        y = body.unused("flat")
        body.do(f"{y} = {x.name}.flatten(2)\n{y}.{body.choices.pick('clamp_(min=0)', 'mul_(2)')}")
    body.renew(x)
