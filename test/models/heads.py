"""The last step: outputs of a drawn model, as images, as scores, or both in a structure."""

from .body import Body
from .shapes import Map

__all__ = ["add_outputs", "add_unused_head"]

_STRUCTURES = (
    "({0}, {1})",
    "[{0}, {1}]",
    '{{"first": {0}, "second": {1}}}',
    "Result({0}, {1})",
    "Pair({0}, {1})",
    "({0}, [{1}, None])",
    "OrderedDict(first={0}, second={1})",
)


def add_outputs(body: Body) -> str:
    """The expression that the model returns."""
    x = body.pick()
    first = _output(body, x)
    if not body.choices.happens(0.25):
        return first
    return body.choices.pick(*_STRUCTURES).format(first, _output(body, body.pick()))


def _output(body: Body, x: Map) -> str:
    form = body.choices.pick("map", "scores", "scores", "scores", "dense")
    if form == "map":
        return x.name
    if form == "dense":
        return f"{body.add_member('head', f'nn.Conv2d({x.channels}, 5, 1)')}({x.name})"
    return _scores(body, x)


def _scores(body: Body, x: Map) -> str:
    c = x.channels
    form = body.choices.pick("mean", "flatten", "sequence", "function", "view", "norm")
    if form == "sequence":
        code = f"nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear({c}, 5))"
        return f"{body.add_member('head', code)}({x.name})"
    linear = body.add_member(
        "head",
        body.choices.pick(
            f"nn.Linear({c}, 5)", f"nn.Linear({c}, 5, bias=False)", f"tnn.LinearDropoutAct({c}, 5, dropout=0.1)"
        ),
    )
    pooled = {
        "mean": f"{x.name}.mean({body.choices.pick('(2, 3)', '[-2, -1]')})",
        "flatten": f"torch.flatten(F.adaptive_avg_pool2d({x.name}, 1), 1)",
        "function": f"F.adaptive_avg_pool2d(F.relu({x.name}), (1, 1)).squeeze(-1).squeeze(-1)",
        "view": f"F.adaptive_max_pool2d({x.name}, 1).view({x.name}.shape[0], -1)",
        "norm": f"{x.name}.mean((2, 3))",
    }[form]
    if form == "norm":
        norm = body.add_member("norm", body.choices.pick("nn.BatchNorm1d(5)", "nn.LayerNorm(5)"))
        return body.choices.pick(f"{norm}({linear}({pooled}))", f"F.relu({norm}({linear}({pooled})))")
    return f"{linear}({pooled})"


def add_unused_head(body: Body) -> None:
    """A child that no ``forward`` calls, or that runs in training only."""
    x = body.maps[-1]
    name = body.add_member("auxiliary", f"nn.Conv2d({x.channels}, 3, 1)")
    if body.choices.happens(0.5):
        body.do(f"if self.training:\n    {name}({x.name})")
