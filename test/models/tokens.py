"""Steps of a ``forward`` that treat pixels as a sequence: transformer blocks on images."""

from .body import Body

__all__ = ["attend", "mix"]


def attend(body: Body) -> None:
    """Attention over the pixels, with a norm before it and a sum after it."""
    x = body.pick()
    if x.channels % 2:
        mix(body)
        return
    c, tokens, y = x.channels, body.unused("tokens"), body.unused("y")
    norm = body.add_member("norm", f"nn.LayerNorm({c})")
    body.do(f"{tokens} = {x.name}.flatten(2).transpose(1, 2)\n{y} = {norm}({tokens})")
    form = body.choices.pick("module", "products", "function")
    if form == "module":
        attention = body.add_member("attention", f"nn.MultiheadAttention({c}, 2, batch_first=True)")
        body.do(f"{y} = {attention}({y}, {y}, {y}, need_weights=False)[0]")
    else:
        qkv = body.add_member("qkv", f"nn.Linear({c}, {3 * c})")
        project = body.add_member("project", f"nn.Linear({c}, {c})")
        q, k, v = body.unused("q"), body.unused("k"), body.unused("v")
        body.do(f"{q}, {k}, {v} = {qkv}({y}).chunk(3, dim=-1)")
        if form == "products":
            body.do(f"{y} = {project}(({q} @ {k}.transpose(-2, -1) * {c**-0.5:.3f}).softmax(-1) @ {v})")
        else:
            body.do(f"{y} = {project}(F.scaled_dot_product_attention({q}, {k}, {v}))")
    body.let(f"({tokens} + {y}).transpose(1, 2).reshape({x.name}.shape)", c, x.sizes)


def mix(body: Body) -> None:
    """A multilayer perceptron over the channels of each pixel."""
    x = body.pick()
    c = x.channels
    code = body.choices.pick(
        f"tnn.MLP({c}, [{2 * c}, {c}], norm_layer=nn.LayerNorm, activation_layer=nn.GELU)",
        f"nn.Sequential(nn.LayerNorm({c}), nn.Linear({c}, {2 * c}), nn.GELU(), nn.Linear({2 * c}, {c}))",
        f"nn.Sequential(nn.Linear({c}, {2 * c}), nn.ReLU(), nn.Dropout(0.1), nn.Linear({2 * c}, {c}, bias=False))",
    )
    name = body.add_member("mlp", code)
    y = body.choices.pick(
        f"{name}({x.name}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", f"{name}({x.name}.movedim(1, -1)).movedim(-1, 1)"
    )
    if body.choices.happens(0.5):
        y = f"{x.name} + {y}"
    body.let(y, c, x.sizes)
