"""Candidates, counting and output of the layer benchmark; the timings themselves are not tested."""

import ast
import importlib
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interpreter import Interpreter

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # the benchmarks are scripts, not a package
    layers, cases, folded_cases, measure = (
        importlib.import_module(name) for name in ("layers", "cases", "folded_cases", "measure")
    )

Weights = Mapping[str, Tensor]


def standardized_conv(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    mean = w["weight"].mean((1, 2, 3), keepdim=True)
    variance = (w["weight"] - mean).square().mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, ours.scale * (w["weight"] - mean) / (variance + ours.eps).sqrt(), w["bias"], padding=1)


def attention(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    """Attention of every pixel to its 49 neighbours, without those outside the image."""
    heads, channels, (rows, columns) = ours.groups, ours.head_channels, x.shape[2:]
    query, key, value = (F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]) for name in ("query", "key", "value"))
    query = query.view(heads, channels, 1, rows * columns)
    key, value = (F.unfold(t, 7, padding=3).view(heads, channels, 49, rows * columns) for t in (key, value))
    vertical, horizontal = w["row_embedding"], w["column_embedding"]
    embedding = torch.cat([vertical.repeat_interleave(7, 2), horizontal.repeat(1, 1, 7)], 1).unsqueeze(-1)
    inside = F.unfold(torch.ones(1, 1, rows, columns), 7, padding=3)
    logits = (query * (key + embedding)).sum(1).masked_fill(inside == 0, -math.inf)
    return (logits.softmax(1).unsqueeze(1) * value).sum(2).reshape(1, heads * channels, rows, columns)


def normalized(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    centred = x - x.mean(ours.dims, keepdim=True)
    output = centred / (centred.square().mean(ours.dims, keepdim=True) + ours.eps).sqrt()
    return output * w["weight"].view(-1, 1, 1) + w["bias"].view(-1, 1, 1) if w else output


def coordinates(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    position = torch.arange(56, dtype=torch.float64) / 27.5 - 1
    concatenated = torch.cat([x, position.view(1, 1, 56, 1).repeat(1, 1, 1, 56), position.repeat(1, 1, 56, 1)], 1)
    return F.conv2d(concatenated, w["weight"], w["bias"], padding=1)


def squeeze_excitation(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    squeezed = ours.activation(x.mean((2, 3)) @ w["fc1.weight"].flatten(1).T + w["fc1.bias"])
    return x * (squeezed @ w["fc2.weight"].flatten(1).T + w["fc2.bias"]).sigmoid()[..., None, None]


def conv_norm_act(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    # Mean and shift are still 0, variance and scale 1.
    return F.conv2d(x, w["0.weight"], padding=1).div(math.sqrt(1 + 1e-5)).clamp(min=0)


def frozen_batch_norm(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    mean, variance, weight, bias = (
        w[name].view(-1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def mlp(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    (w1, b1), (w2, b2) = ((w[name], w[name.replace("weight", "bias")]) for name in w if name.endswith("weight"))
    return (x @ w1.T + b1).clamp(min=0) @ w2.T + b2


def layer_norm(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    output = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return output * w["weight"].view(-1, 1, 1) + w["bias"].view(-1, 1, 1)


def normalized_conv(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """A convolution and a batch norm whose mean and shift are still 0, variance and scale 1."""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups).div(math.sqrt(1 + 1e-5))


def rep_conv(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    convs = [normalized_conv(x, w[key], ours.groups) for key in w if key.endswith(".0.weight")]
    return torch.stack([*convs, x.div(math.sqrt(1 + 1e-5))]).sum(0).clamp(min=0)


def global_response_norm(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    images = x.movedim(ours.channels_dim, -1)
    responses = images.flatten(1, -2).square().sum(1).sqrt()
    relative = (responses / (responses.mean(1, keepdim=True) + 1e-6)).view(-1, *[1] * (x.dim() - 2), responses.shape[1])
    return (w["weight"] * images * relative + w["bias"] + images).movedim(-1, ours.channels_dim)


def universal_inverted_bottleneck(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    y = normalized_conv(x, w["block.start.0.weight"], x.shape[1])
    y = normalized_conv(y, w["block.expand.0.weight"]).clamp(min=0)
    y = normalized_conv(y, w["block.middle.0.weight"], y.shape[1]).clamp(min=0)
    return x + normalized_conv(y, w["block.project.0.weight"])


def convnext_block(x: Tensor, w: Weights, ours: nn.Module) -> Tensor:
    y = F.conv2d(x, w["block.0.weight"], w["block.0.bias"], padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    y = (y * w["block.2.weight"] + w["block.2.bias"]) @ w["block.3.weight"].T + w["block.3.bias"]
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2 @ w["block.5.weight"].T + w["block.5.bias"]
    return x + w["layer_scale"] * y.permute(0, 3, 1, 2)


FORMULAS: dict[str, Callable[[Tensor, Weights, Any], Tensor]] = {
    "WSConv2d": standardized_conv,
    "SWSConv2d": standardized_conv,
    "MultiHeadedSpatialAttention": attention,
    "PFLayerNorm": normalized,
    "CLayerNorm": normalized,
    "CoordConv2d": coordinates,
    "SqueezeExcitation": squeeze_excitation,
    "SEBlock": squeeze_excitation,
    "Mish": lambda x, w, ours: x * (1 + x.exp()).log().tanh(),
    "ConvNormAct": conv_norm_act,
    "FrozenBatchNorm2d": frozen_batch_norm,
    "MLP": mlp,
    "LayerNorm2d": layer_norm,
    "RepConv": rep_conv,
    "GlobalResponseNorm": global_response_norm,
    "UniversalInvertedBottleneck": universal_inverted_bottleneck,
    "ConvNeXtBlock": convnext_block,
}


@pytest.mark.parametrize("case", cases.CASES, ids=str)
@torch.no_grad()
def test_equal_candidates_compute_the_same_as_the_layer(case) -> None:
    candidates = case.build()
    ours = candidates["ours"].module
    assert isinstance(ours, case.layer)
    assert candidates["ours"].is_equal
    x = torch.randn(1, *case.shape[1:])
    expected = FORMULAS[case.layer.__name__](x.double(), {k: v.double() for k, v in ours.state_dict().items()}, ours)
    for name, candidate in candidates.items():
        if candidate.is_equal:
            output = candidate.module.eval()(x)
            torch.testing.assert_close(
                output.double(), expected, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_all_candidates_train(case) -> None:
    """Autograd raises an error for unused parameters, even with a single image."""
    input = torch.randn(1, *case.shape[1:])
    for candidate in case._replace(shape=tuple(input.shape)).build().values():
        if candidate.trains:
            first, *others = measure.training_step(candidate.module, input)()
            assert first.shape == input.shape
            assert len(others) == len(list(candidate.module.parameters()))


def test_frozen_batch_norm_is_compared_with_batch_norm_in_eval_mode() -> None:
    (case,) = layers.choose(["FrozenBatchNorm2d"], cases.CASES)
    baseline = next(iter(case.build().values())).module
    assert not any(module.training for module in baseline.train().modules())


def test_without_timm_the_other_candidates_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm", "timm.layers"):
        monkeypatch.setitem(sys.modules, name, None)
    for case in cases.CASES:
        names = list(case._replace(shape=(1, *case.shape[1:])).build())
        assert names[1] == "ours"
        assert not any("timm" in name for name in names)


class Clock:
    """Clock that only advances during calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *durations: float) -> Callable[[], None]:
        """A call that takes each of ``durations`` in turn, then always the last."""
        remaining = list(durations)

        def call() -> None:
            self.called.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return call


def interleaved(clock: Clock, calls: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    return measure.interleave(calls, rounds, at_least=1, timer=partial(measure.wall_seconds, clock=clock))


def test_candidates_take_turns() -> None:
    clock = Clock()
    seconds = interleaved(clock, {"a": clock.call("a", 1), "b": clock.call("b", 2)}, 3)
    assert "".join(clock.called) == "aabb" + "ab" + "ba" + "ab"  # warm-up, then the rounds
    assert seconds == {"a": [1, 1, 1], "b": [2, 2, 2]}


def test_a_short_call_is_repeated_until_it_can_be_measured() -> None:
    clock = Clock()
    calls = {"short": clock.call("s", 0.25), "long": clock.call("l", 3)}
    seconds = interleaved(clock, calls, 2)
    assert "".join(clock.called).endswith("ll" + "ssssl" + "lssss")
    assert seconds == {"short": [0.25, 0.25], "long": [3, 3]}


def test_the_first_calls_are_not_counted() -> None:
    clock = Clock()
    seconds = interleaved(clock, {"a": clock.call("a", 50, 1)}, 3)
    assert seconds == {"a": [1, 1, 1]}


def test_an_outlier_does_not_change_the_ratio() -> None:
    result = measure.ratios({"baseline": [2, 2, 2, 90, 2], "ours": [3, 70, 3, 3, 3]})
    assert result["baseline"] == (1, 1, 1)
    assert result["ours"] == (1.5, 1.5, 1.5)


def test_quartiles_are_those_of_the_ratios_of_rounds() -> None:
    # Everything is twice as slow in the later rounds, but the ratios are still 1.0, 1.1, 1.2, 1.3 and 1.4.
    result = measure.ratios({"baseline": [1, 1, 2, 2, 2], "ours": [1.0, 1.1, 2.4, 2.6, 2.8]})
    assert result["ours"] == pytest.approx((1.2, 1.1, 1.3))


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (measure.Ratio(1.5, 1.43, 1.57), "1.50"),
        (measure.Ratio(1.5, 1.4, 1.6), "~1.50"),
        (measure.Ratio(15, 9, 16), "~15.00"),
        (2, "2.00"),
        (None, "–"),
    ],
)
def test_a_noisy_figure_is_marked(figure, text: str) -> None:
    assert layers.text(figure) == text


def test_one_round_is_enough() -> None:
    assert measure.ratios({"baseline": [2], "ours": [3]})["ours"] == (1.5, 1.5, 1.5)


class Toy(nn.Module):
    def __init__(self, function: Callable[[Tensor, "Toy"], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(4, 6))
        self.register_buffer("fixed", torch.rand(4, 6))
        self.other = [torch.rand(4, 6, requires_grad=True)]  # in a list, so not part of the state

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self)


def drop(x: Tensor, toy: Toy) -> Tensor:
    (x * toy.other[0]).exp()
    return x + 1


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x, toy: x + 1, 0),
        (lambda x, toy: x * toy.other[0], 2),
        (lambda x, toy: x * x, 1),  # twice the same storage
        (lambda x, toy: x[:2] * x[2:], 1),  # two halves of one storage
        (lambda x, toy: x * x.t().reshape(4, 6), 2),  # the second is a copy
        (lambda x, toy: x * toy.weight, 1),
        (lambda x, toy: x * toy.fixed, 0),
        (lambda x, toy: x.exp(), 1),  # its own output
        (drop, 0),  # its graph is gone
    ],
)
def test_saved_bytes_of_known_functions(function, inputs: int) -> None:
    input = torch.rand(4, 6)
    assert measure.saved_bytes(Toy(function), input) == inputs * input.nbytes


def test_saved_bytes_restores_the_hooks() -> None:
    toy = Toy(lambda x, toy: x * toy.weight)
    measure.saved_bytes(toy, torch.rand(4, 6))
    toy(torch.rand(4, 6)).sum().backward()
    assert toy.weight.grad is not None


@pytest.fixture
def maps(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file like Linux's ``/proc/self/maps`` of a process with these files mapped."""

    def write(*files: str) -> Path:
        lines = [f"7f3c1a000000-7f3c1a028000 r-xp 00001000 08:01 {i:<26}{file}" for i, file in enumerate(files)]
        (tmp_path / "maps").write_text("\n".join([*lines, "7ffd0f3de000-7ffd0f3ff000 rw-p 00000000 00:00 0"]))
        return tmp_path / "maps"

    return write


@pytest.mark.parametrize(
    "file", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2.1", "libjemalloc.so.2 (deleted)"]
)
def test_a_preloaded_allocator_is_named(maps, file: str) -> None:
    assert measure.allocator(maps("/usr/lib/libc.so.6", f"/opt/a folder/{file}")) == file


def test_the_default_allocator_is_that_of_the_c_library(maps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    mapped = maps("/usr/lib/libc.so.6", "/home/jemalloc/lib/libtorch.so", "[heap]")
    for file in (mapped, tmp_path / "not there"):
        assert measure.allocator(file) == "the C library's (glibc 2.36)"


def test_the_allocator_without_glibc_is_named_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert measure.allocator(tmp_path / "not there") == "the C library's (Darwin)"


def test_conditions_include_settings_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in measure.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000000")
    monkeypatch.setenv("MALLOC_CONF", "dirty_decay_ms:-1")
    conditions = measure.conditions()
    assert conditions["allocator"].endswith(" MALLOC_CONF=dirty_decay_ms:-1 MALLOC_TOP_PAD_=1000000")
    assert conditions["threads"] == "1"


def test_names_select_layers() -> None:
    def chosen(*names: str) -> set[str]:
        return {case.layer.__name__ for case in layers.choose(names, cases.CASES)}

    assert chosen("WSConv2d") == {"WSConv2d"}  # and not SWSConv2d
    assert chosen("layernorm") == {"PFLayerNorm", "CLayerNorm", "LayerNorm2d"}
    assert chosen("Mish", "SEBlock") == {"Mish", "SEBlock"}
    assert all(chosen(name) == {name} for name in FORMULAS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "Mish", "Conv9d"], "no layer is called 'Conv9d'; there are WSConv2d, SWSConv2d, .*, LayerNorm2d"),
        (["--rounds", "0"], "--rounds: must be at least 1, got 0"),
        (["--threads", "some"], "--threads: invalid count value: 'some'"),
        (["--formats", "NHWC"], "--formats: invalid choice: 'NHWC'"),
        (["--json", "no such folder/file.json"], "--json: must be a file in an existing folder, got no such folder"),
        (["--json", "."], "--json: must be a file in an existing folder, got ."),
    ],
)
def test_wrong_arguments_raise_errors_before_anything_runs(arguments, message, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        layers.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert captured.out == ""


def test_an_interrupted_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text("earlier")
    with pytest.raises(UnicodeEncodeError):
        layers.write(path, {"text": "half \ud800"})
    assert path.read_text() == "earlier"
    layers.write(path, {"text": "whole"})
    assert json.loads(path.read_text()) == {"text": "whole"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["layers", "folded"])
def test_the_figures_in_the_docs_match_the_cases(name: str) -> None:
    rows = json.loads((BENCHMARKS.parent / f"docs/source/benchmarks_{name}.json").read_text())["rows"]
    recorded = [(row["layer"], row["options"], row["shape"], row["format"], row["target"]["inference"]) for row in rows]
    expected = [
        (
            case.layer.__name__,
            json.loads(json.dumps(dict(case.options))),
            list(case.shape),
            format,
            case.target.inference,
        )
        for case in (layers.ALL_CASES if name == "layers" else folded_cases.FOLDED_CASES)
        for format in (("contiguous", "channels_last") if len(case.shape) == 4 else ("contiguous",))
    ]
    assert recorded == expected


def test_the_command_prints_a_table_and_writes_the_same_figures(tmp_path: Path, interpreter: Interpreter) -> None:
    options = ["--only", "Mish", "--rounds", "1", "--json", str(tmp_path / "a.json")]
    result = interpreter.run(BENCHMARKS / "layers.py", *options, cwd=tmp_path)
    assert result.stderr == "", "no warning"
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert {"torch", "threads", "CPU capability", "allocator", "rounds"} <= set(written["conditions"])
    lines = result.stdout.splitlines()
    assert lines[0] == f"torch: {written['conditions']['torch']}"
    assert max(map(len, lines)) <= 140
    assert lines[-4] == "Mish, 8×64×56×56"
    assert lines[-3].split() == ["baseline:", "F.mish", "ours", "target"]
    for line, row, name in zip(lines[-2:], written["rows"], ("contiguous", "channels_last"), strict=True):
        assert (row["layer"], row["format"], row["baseline"]) == ("Mish", name, "F.mish")
        ours = row["candidates"]["ours"]
        figures = [ours["inference"]["ratio"], ours["training"]["ratio"], ours["saved"]]
        label, *numbers = line.replace("/", "").split()
        assert label == name
        assert numbers == ["1.00"] * 3 + [f"{figure:.2f}" for figure in figures] + ["1.00", "1.00", "–"]
        assert row["candidates"]["F.mish"]["inference"] == {"ratio": 1, "quartiles": [1, 1]}


def test_inputs_other_than_images_have_one_layout(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    once = measure.Ratio(1, 1, 1)
    monkeypatch.setattr(layers, "measure", lambda *arguments: {"a": layers.Figures(once, None, None)})
    layers.main(["--only", "MLP", "--formats", "channels_last"])
    assert "channels_last" not in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.name)
def test_benchmarks_use_the_public_api_only(file: Path) -> None:
    packages = {"torchvision_layers", "torchvision_layers.experimental"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torchvision_layers"):
            assert node.module in packages
            assert {alias.name for alias in node.names} <= {"deploy", "nn", "quantized"}
