"""Steps of a ``forward`` that call modules and functions."""

from .blocks import any_layer, conv_norm_act
from .body import Body, Child
from .layers import ACTIVATIONS, Layer, conv, plain_conv
from .shapes import Map, smallest, windowed

__all__ = ["call_again", "call_function", "call_layer", "call_list", "call_shared_weight", "resample"]

_FUNCTIONS = (
    *("F.relu({})", "torch.relu({})", "{}.relu()", "F.relu({}, inplace=True)", "F.relu_({})", "{}.relu_()"),
    *(
        "F.relu6({})",
        "F.hardswish({})",
        "F.silu({})",
        "F.gelu({})",
        "F.leaky_relu({}, 0.1)",
        "F.hardtanh({}, -1.0, 1.0)",
    ),
    *("{}.clamp(0, 6)", "torch.clamp({}, min=0)", "torch.sigmoid({})", "{}.sigmoid()", "{}.tanh()", "F.elu({})"),
    *(
        "F.mish({})",
        "F.softplus({})",
        "F.hardsigmoid({})",
        "torch.clamp_({}, -2, 2)",
        "F.hardtanh_({})",
        "F.silu({}, inplace=True)",
    ),
    *("F.dropout({}, 0.2, self.training)", "F.dropout2d({}, training=self.training)", "F.normalize({}, dim=1)"),
    *("F.softmax({}, dim=1)", "{}.abs()", "{}.contiguous()", "{}.clone()", "{}.square()", "torch.exp(-{})"),
)


def call_layer(body: Body) -> None:
    """Creates a child and calls it."""
    x = body.pick()
    layer = any_layer(body.choices, x.channels, x.sizes)
    _call(body, layer, x)


def _call(body: Body, layer: Layer, x: Map) -> Map:
    name = body.add_member("layer", layer.code)
    if layer.channels == x.channels and layer.sizes == x.sizes:
        is_pointwise = layer.code in ACTIVATIONS
        body.children.append(Child(name, None if is_pointwise else x.channels, not is_pointwise))
    return body.let(f"{name}({x.name})", layer.channels, layer.sizes)


def call_function(body: Body) -> None:
    """A function of one image."""
    x = body.pick()
    body.let(body.choices.pick_from(_FUNCTIONS).format(x.name), x.channels, x.sizes)


def call_again(body: Body) -> None:
    """Calls a child that was called before: a shared weight, or an activation for several layers."""
    x = body.pick()
    names = [
        child.name
        for child in body.children
        if child.channels in (None, x.channels) and (smallest(x.sizes) >= 8 or not child.has_kernel)
    ]
    if names:
        body.let(f"{body.choices.pick_from(names)}({x.name})", x.channels, x.sizes)
    else:
        call_function(body)


def call_list(body: Body) -> None:
    """A ``nn.ModuleList`` in a loop, a ``nn.ModuleDict``, or children of a plain ``nn.Module``."""
    x = body.pick()
    layers = [plain_conv(body.choices, x.channels, x.sizes, x.channels)]
    for _ in range(body.choices.count(0, 2)):
        layers.append(Layer(body.choices.pick_from(ACTIVATIONS), x.channels, x.sizes))
    codes = [layer.code for layer in layers]
    form = body.choices.pick("loop", "dense", "dict", "namespace", "slice")
    if form == "loop":
        name = body.add_member("layers", f"nn.ModuleList([{', '.join(codes)}])")
        y = body.let(x.name, x.channels, x.sizes)
        body.do(f"for layer in {name}:\n    {y.name} = layer({y.name})")
    elif form == "dense":
        convs = [f"nn.Conv2d({x.channels + 4 * i}, 4, 3, padding=1)" for i in range(len(layers))]
        name = body.add_member("layers", f"nn.ModuleList([{', '.join(convs)}])")
        features = body.unused("features")
        body.do(
            f"{features} = [{x.name}]\n"
            f"for layer in {name}:\n    {features}.append(F.relu(layer(torch.cat({features}, 1))))"
        )
        body.let(f"torch.cat({features}, dim=1)", x.channels + 4 * len(layers), x.sizes)
    elif form == "dict":
        entries = ", ".join(f'"{key}": {code}' for key, code in zip("abc", codes, strict=False))
        name = body.add_member("layers", f"nn.ModuleDict({{{entries}}})")
        calls = x.name
        for key, _ in zip("abc", codes, strict=False):
            calls = f'{name}["{key}"]({calls})'
        body.let(calls, x.channels, x.sizes)
    elif form == "namespace":
        name = body.add_member("layers", "nn.Module()")
        for key, code in zip("abc", codes, strict=False):
            body.members.append(f"{name}.{key} = {code}")
        calls = x.name
        for key, _ in zip("abc", codes, strict=False):
            calls = f"{name}.{key}({calls})"
        body.let(calls, x.channels, x.sizes)
    else:
        name = body.add_member("layers", f"nn.Sequential({', '.join(codes)})")
        y = body.let(f"{name}[0]({x.name})", x.channels, x.sizes)
        if len(codes) > 1:
            body.let(f"{name}[1:]({y.name})", x.channels, x.sizes)


def call_shared_weight(body: Body) -> None:
    """One weight in two layers, a layer under two names, or a layer whose weight the ``forward`` reads."""
    x = body.pick()
    layer = plain_conv(body.choices, x.channels, x.sizes, x.channels)
    first = body.add_member("layer", layer.code)
    form = body.choices.pick("name", "weight", "functional", "own")
    y = body.let(f"{first}({x.name})", x.channels, x.sizes)
    if form == "name":
        second = body.add_member("layer", first)
        body.let(f"{second}(F.relu({y.name}))", x.channels, x.sizes)
    elif form == "weight":
        second = body.add_member("layer", layer.code)
        body.members.append(f"{second}.weight = {first}.weight")
        body.let(f"{second}({y.name})", x.channels, x.sizes)
    elif form == "functional":
        padding = ", padding=1" if "padding=1" in layer.code else ""
        body.let(f"F.conv2d({y.name}, {first}.weight, {first}.bias{padding})", x.channels, x.sizes)
    else:
        name = body.add_member("weight", f"nn.Parameter(torch.randn({x.channels}, {x.channels}, 1, 1) * 0.3)")
        body.let(f"F.conv2d({y.name}, {name})", x.channels, x.sizes)


def resample(body: Body) -> None:
    """Functional pooling, or a coarse branch that is interpolated and joined, as in a U-Net."""
    x = body.pick()
    if smallest(x.sizes) < 6:
        call_layer(body)
        return
    form = body.choices.pick("pool", "unet", "pad", "branch")
    if form == "pool":
        code, kernel, stride, padding = body.choices.pick(
            ("F.max_pool2d({}, 2)", 2, 2, 0),
            ("F.avg_pool2d({}, 2)", 2, 2, 0),
            ("F.max_pool2d({}, 3, stride=2, padding=1)", 3, 2, 1),
            ("F.avg_pool2d({}, 3, 1, 1, count_include_pad=False)", 3, 1, 1),
            ("{}[:, :, ::2, ::2]", 1, 2, 0),
        )
        body.let(code.format(x.name), x.channels, windowed(x.sizes, kernel, stride, padding))
    elif form == "unet":
        down = body.let(f"F.max_pool2d({x.name}, 2)", x.channels, windowed(x.sizes, 2, 2))
        y = _call(body, conv_norm_act(body.choices, down.channels, down.sizes), down)
        mode = body.choices.pick("mode='nearest'", "mode='bilinear'", "mode='bilinear', align_corners=True")
        up = body.let(f"F.interpolate({y.name}, size={x.name}.shape[-2:], {mode})", y.channels, x.sizes)
        if up.channels == x.channels and body.choices.happens(0.5):
            body.let(f"{up.name} + {x.name}", x.channels, x.sizes)
        else:
            body.let(f"torch.cat([{x.name}, {up.name}], dim=1)", x.channels + up.channels, x.sizes)
    elif form == "pad":
        mode = body.choices.pick("", ", mode='reflect'", ", mode='replicate'", ", value=0.5", ", mode='circular'")
        padded = tuple((height + 2, width + 1) for height, width in x.sizes)
        y = body.let(f"F.pad({x.name}, (1, 0, 1, 1){mode})", x.channels, padded)
        _call(body, conv(body.choices, y.channels, y.sizes), y)
    else:
        even = tuple((height + height % 2, width) for height, width in x.sizes)
        y = body.let(x.name, x.channels, even)
        body.do(f"if {x.name}.shape[-2] % 2:\n    {y.name} = F.pad({y.name}, (0, 0, 0, 1))")
