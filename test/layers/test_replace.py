"""``tnn.replace`` on models of torch, torchvision and timm: results, what stays, what is said, what is refused."""

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn


@pytest.fixture
def resnet() -> nn.Module:
    """A ResNet-18 whose norms have seen data, in training mode."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=7)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def batch() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))


def no_batch_norm(model: nn.Module) -> bool:
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


class TestResults:
    def test_frozen_batch_norm_keeps_statistics_and_affine_parameters(self, resnet: nn.Module) -> None:
        frozen = tnn.replace(resnet, nn.BatchNorm2d, tnn.FrozenBatchNorm2d)
        assert no_batch_norm(frozen)
        expected = resnet.eval()(batch())
        torch.testing.assert_close(frozen.eval()(batch()), expected)
        torch.testing.assert_close(frozen.train()(batch()), expected)

    @pytest.mark.filterwarnings("ignore:replaced 20 layers")
    def test_group_norm_keeps_the_affine_parameters(self, resnet: nn.Module) -> None:
        model = tnn.replace(resnet, nn.BatchNorm2d, partial(nn.GroupNorm, 32))
        expected = torchvision.models.resnet18(
            weights=None, num_classes=7, norm_layer=lambda channels: nn.GroupNorm(32, channels)
        )
        expected.load_state_dict(
            {k: v for k, v in resnet.state_dict().items() if "running" not in k and "num" not in k}
        )
        assert torch.equal(model(batch()), expected(batch()))

    @pytest.mark.filterwarnings("ignore:replaced 20 layers")
    def test_instance_norm_uses_the_statistics_of_each_image(self, resnet: nn.Module) -> None:
        model = tnn.replace(resnet, nn.BatchNorm2d, nn.InstanceNorm2d)
        x = torch.randn(2, 64, 5, 5)
        expected = nn.functional.instance_norm(x, weight=resnet.bn1.weight, bias=resnet.bn1.bias)
        torch.testing.assert_close(model.eval().bn1(x), expected)

    def test_activations(self) -> None:
        model = sequential()
        replaced = tnn.replace(model, nn.ReLU, nn.SiLU)
        x = torch.randn(2, 3, 5, 5)
        torch.testing.assert_close(replaced(x), nn.functional.silu(model[:2](x)))
        assert replaced[2].inplace

    def test_a_convolution_of_the_same_sizes_keeps_its_weights(self) -> None:
        conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), groups=2, bias=False)
        x = torch.randn(1, 4, 9, 9)
        same = tnn.replace(nn.Sequential(conv), nn.Conv2d, tnn.Conv2dSame)
        assert (same[0].kernel_size, same[0].groups, same[0].bias) == ((3, 5), 2, None)
        torch.testing.assert_close(same(x), conv(x))  # an odd size is padded alike

    def test_a_new_head_by_predicate(self, resnet: nn.Module) -> None:
        with pytest.warns(UserWarning, match=r"weight of shape \[7, 512\] dropped, \[3, 512\] needed at fc"):
            model = tnn.replace(resnet, lambda path, _: path == "fc", lambda in_features: nn.Linear(in_features, 3))
        assert model(batch()).shape == (2, 3)

    def test_a_function_of_the_layer(self) -> None:
        model = timm.create_model("mobilenetv3_small_050", num_classes=4)  # channels that 32 does not divide
        groups = lambda num_features: nn.GroupNorm(math.gcd(16, num_features), num_features)  # noqa: E731
        with pytest.warns(UserWarning, match=r"act \(ReLU\) dropped"):
            tnn.replace(model, timm.layers.BatchNormAct2d, groups)

    def test_the_new_layer_may_contain_the_old_one(self, resnet: nn.Module) -> None:
        model = tnn.replace(resnet, nn.Conv2d, lambda layer: nn.Sequential(nn.Dropout(), layer))
        assert isinstance(model.conv1[1], nn.Conv2d)
        assert torch.equal(model.eval()(batch()), resnet.eval()(batch()))

    def test_a_function_may_return_the_layer_itself(self) -> None:
        model = sequential()
        model[0].register_forward_hook(lambda *_: None)
        tnn.replace(model, nn.Conv2d, lambda layer: layer, inplace=True)
        assert len(model[0]._forward_hooks) == 1

    def test_an_instance_is_copied(self) -> None:
        model = nn.Sequential(nn.ReLU(), nn.ReLU())
        with pytest.warns(UserWarning, match="weight not trained"):
            replaced = tnn.replace(model, nn.ReLU, lambda: PRELU)
        assert replaced[0].weight is not replaced[1].weight
        assert tnn.replace(model, nn.ReLU, nn.ELU(0.5))[1].alpha == 0.5

    def test_the_model_itself(self) -> None:
        assert isinstance(tnn.replace(nn.ReLU(), nn.ReLU, nn.SiLU), nn.SiLU)

    def test_the_result_quantizes(self) -> None:
        model = tnn.replace(sequential().eval(), nn.ReLU, nn.ReLU6)
        x = torch.randn(4, 3, 16, 16)
        int8 = quantized.quantize(model, [x], progress=False)
        noise = model(x) - int8(x)
        assert 10 * torch.log10(model(x).square().mean() / noise.square().mean()) > 30


PRELU = nn.PReLU()


class TestWhatStays:
    def test_a_copy_leaves_the_model_alone(self, resnet: nn.Module) -> None:
        before = copy.deepcopy(resnet.state_dict())
        tnn.replace(resnet, nn.BatchNorm2d, tnn.FrozenBatchNorm2d)
        assert not no_batch_norm(resnet)
        assert all(torch.equal(value, before[key]) for key, value in resnet.state_dict().items())

    def test_in_place_keeps_names_and_every_reference(self, resnet: nn.Module) -> None:
        names = [name for name, _ in resnet.named_modules()]
        norm = resnet.layer1[0].bn1  # as a list of layers in a forward would hold it
        assert tnn.replace(resnet, nn.BatchNorm2d, tnn.FrozenBatchNorm2d, inplace=True) is resnet
        assert [name for name, _ in resnet.named_modules()] == names
        assert isinstance(norm, tnn.FrozenBatchNorm2d)

    @pytest.mark.filterwarnings("ignore:replaced 20 layers")
    def test_optimizers_and_tied_weights_keep_their_parameters(self, resnet: nn.Module) -> None:
        resnet.layer1[0].bn1.weight = resnet.bn1.weight
        resnet.bn1.weight.requires_grad_(False)
        resnet.bn1.bias.grad = torch.ones(64)
        before = dict(resnet.named_parameters(remove_duplicate=False))
        tnn.replace(resnet, nn.BatchNorm2d, partial(nn.GroupNorm, 32), inplace=True)
        after = dict(resnet.named_parameters(remove_duplicate=False))
        assert after.keys() == before.keys()
        assert all(after[name] is parameter for name, parameter in before.items())

    def test_a_shared_module_stays_shared(self) -> None:
        norm = nn.BatchNorm2d(4)
        model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.ReLU())})
        calls = []

        def make(num_features: int) -> nn.Module:
            calls.append(num_features)
            return tnn.FrozenBatchNorm2d(num_features)

        replaced = tnn.replace(model, nn.BatchNorm2d, make)
        assert calls == [4]
        assert isinstance(replaced["a"], tnn.FrozenBatchNorm2d)
        assert replaced["a"] is replaced["b"][0]

    def test_modes(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4)).train()
        model[0].eval()
        with pytest.warns(UserWarning, match="running_mean"):
            replaced = tnn.replace(model, nn.BatchNorm2d, lambda num_features: nn.Sequential(nn.GroupNorm(2, 4)))
        assert [part.training for part in (replaced[0], replaced[0][0], replaced[1], replaced[1][0])] == [
            False, False, True, True,
        ]  # fmt: skip

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        model = sequential().to(dtype)
        frozen = tnn.replace(model, nn.BatchNorm2d, tnn.FrozenBatchNorm2d)
        assert {value.dtype for value in frozen.state_dict().values()} == {dtype}
        with pytest.warns(UserWarning, match="weight not trained"):  # its dtype is that of the layers around it
            assert tnn.replace(model, nn.ReLU, nn.PReLU)[2].weight.dtype == dtype

    def test_devices(self) -> None:
        model = sequential().to("meta")
        model = tnn.replace(model, nn.BatchNorm2d, tnn.FrozenBatchNorm2d)
        with pytest.warns(UserWarning, match="weight not trained"):
            model = tnn.replace(model, nn.ReLU, nn.PReLU)
        assert {value.device.type for value in model.state_dict().values()} == {"meta"}

    def test_hooks(self) -> None:
        model = sequential()
        model[2].inplace = False  # torch refuses backward hooks on layers that overwrite their input
        calls = []
        handles = [
            model[2].register_forward_hook(lambda module, args, output: calls.append("after")),
            model[2].register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True),
            model[2].register_full_backward_hook(lambda module, grads, outputs: calls.append("backward")),
        ]
        tnn.replace(model, nn.ReLU, nn.SiLU, inplace=True)
        model(torch.randn(1, 3, 4, 4)).sum().backward()
        assert calls == ["before", "after", "backward"]
        for handle in handles:
            handle.remove()
        model(torch.randn(1, 3, 4, 4)).sum().backward()
        assert len(calls) == 3

    def test_hooks_run_once_around_a_layer_that_contains_the_old_one(self) -> None:
        model = sequential()
        outputs: list[Tensor] = []
        handle = model[0].register_forward_hook(lambda module, args, output: outputs.append(output))
        tnn.replace(model, nn.Conv2d, lambda layer: nn.Sequential(layer, nn.Tanh()), inplace=True)
        model(torch.randn(1, 3, 4, 4))
        assert len(outputs) == 1
        assert float(outputs[0].detach().abs().max()) <= 1
        handle.remove()
        model(torch.randn(1, 3, 4, 4))
        assert len(outputs) == 1

    def test_the_projection_that_attention_only_reads(self) -> None:
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
        replaced = tnn.replace(model, nn.Linear, lambda layer: nn.Sequential(layer))
        assert isinstance(replaced[0].linear1, nn.Sequential)
        assert isinstance(replaced[0].self_attn.out_proj, nn.Linear)


class TestWhatIsSaid:
    def test_statistics(self, resnet: nn.Module) -> None:
        message = (
            "replaced 20 layers, but not everything could be carried over:\n  BatchNorm2d -> GroupNorm: "
            r"running_mean, running_var, num_batches_tracked dropped at bn1, layer1.0.bn1, .* and 12 more$"
        )
        with pytest.warns(UserWarning, match=message) as record:
            tnn.replace(resnet, nn.BatchNorm2d, partial(nn.GroupNorm, 32))
        assert record[0].filename == __file__

    @pytest.mark.parametrize(
        ("layer", "new", "message"),
        [
            (nn.BatchNorm2d(4, momentum=0.01), partial(nn.GroupNorm, 2), "momentum=0.01 dropped"),
            (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), tnn.Conv2dSame, "padding_mode='circular' dropped"),
            (nn.GroupNorm(2, 4), nn.BatchNorm2d, "running_mean, running_var not trained, but at the initial value"),
            (nn.LeakyReLU(0.2), nn.SiLU, "negative_slope=0.2 dropped"),
            (timm.layers.BatchNormAct2d(4), nn.BatchNorm2d, r"act \(ReLU\) dropped"),
            (
                timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU),
                partial(timm.layers.GroupNormAct, num_groups=2),
                r"act \(SiLU\) replaced by ReLU",
            ),
            (
                enn.RepConv(4, 4, stride=2),
                partial(enn.RepConv, kernel_size=5),
                "RepConv -> RepConv: stride, dilation, branches, pointwise, identity unknown",
            ),
        ],
    )
    def test_losses(self, layer: nn.Module, new: Any, message: str) -> None:
        with pytest.warns(UserWarning, match=message):
            tnn.replace(nn.Sequential(layer), type(layer), new)

    @pytest.mark.parametrize(
        ("layer", "new"),
        [
            (nn.BatchNorm2d(4, eps=1e-3), tnn.FrozenBatchNorm2d),
            (nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), nn.SyncBatchNorm),
            (nn.Conv2d(4, 8, 3, 2, 1, bias=False, padding_mode="reflect"), nn.Conv2d),
            (nn.LayerNorm(4, elementwise_affine=False, bias=False), nn.RMSNorm),
            (nn.ReLU(True), nn.Mish),
            (nn.LeakyReLU(0.2), partial(nn.LeakyReLU, negative_slope=0.1)),
            (torchvision.ops.StochasticDepth(0.2, "row"), timm.layers.DropPath),
        ],
    )
    def test_nothing_if_nothing_is_lost(self, layer: nn.Module, new: Callable[..., nn.Module]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            replaced = tnn.replace(nn.Sequential(layer), type(layer), new)[0]
        for name in ("eps", "bias"):
            value = getattr(layer, name, None)
            assert not isinstance(value, float) or getattr(replaced, name) == value


class TestErrors:
    def check(self, model: nn.Module, old: Any, new: Any, message: str, error: type[Exception] = ValueError) -> None:
        """Raises, and changes nothing."""
        before = repr(model)
        with pytest.raises(error, match=message):
            tnn.replace(model, old, new, inplace=True)
        assert repr(model) == before

    def test_nothing_matched(self, resnet: nn.Module) -> None:
        self.check(resnet, nn.LSTM, nn.GRU, "old must match a layer of model, LSTM matches none of its classes: Adap")
        self.check(resnet, lambda path, module: False, nn.GRU, "old must match a layer of model, <lambda> matches none")

    def test_all_sizes_that_the_constructor_rejects_are_listed(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(24), nn.BatchNorm2d(40), nn.BatchNorm2d(24))
        message = (
            r"new=partial\(GroupNorm, ...\) cannot replace all layers that old matches:\n"
            r"  1, 3: BatchNorm2d gives num_channels=24, eps=1e-05, affine=True.*: num_channels .*must be divisible.*\n"
            r"  2: BatchNorm2d gives num_channels=40"
        )
        self.check(model, nn.BatchNorm2d, partial(nn.GroupNorm, 32), message)

    def test_a_constructor_that_needs_more(self) -> None:
        message = "2: ReLU has no num_features, which new requires: bind it with functools.partial, or pass a function"
        self.check(sequential(), nn.ReLU, nn.BatchNorm2d, message)

    def test_another_forward(self) -> None:
        message = r"2: ReLU has the forward\(input\), Bilinear another one: forward\(input1, input2\)"
        self.check(sequential(), nn.ReLU, lambda: nn.Bilinear(2, 2, 2), message)

    def test_fewer_inputs(self) -> None:
        model = nn.Sequential(nn.MultiheadAttention(4, 2))
        self.check(model, nn.MultiheadAttention, nn.Identity, r"has the forward\(query, key, value.*Identity another")

    def test_parametrized_weights(self) -> None:
        model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
        prune.identity(model[1], "weight")
        message = (
            "0: ParametrizedConv2d has parametrized weights: call torch.nn.utils.parametrize.remove_.*\n  1: .*hook"
        )
        self.check(model, nn.Conv2d, nn.Conv2d, message)

    def test_a_class_with_another_forward(self) -> None:
        model = nn.Sequential(timm.layers.BatchNormAct2d(4))
        message = (
            "BatchNormAct2d overrides the forward of BatchNorm2d.*pass old=BatchNormAct2d if new computes the same"
        )
        self.check(model, nn.BatchNorm2d, tnn.FrozenBatchNorm2d, message)

    def test_a_forward_on_the_instance(self) -> None:
        model = sequential()
        model[2].forward = torch.sigmoid  # type: ignore[method-assign,assignment]
        self.check(model, nn.ReLU, nn.SiLU, "2: ReLU has a forward that was set on the instance, which would be lost")

    def test_wrapped_and_lazy_models(self) -> None:
        self.check(torch.optim.swa_utils.AveragedModel(sequential()), nn.ReLU, nn.SiLU, "pass the module that it wraps")
        self.check(nn.Sequential(nn.LazyConv2d(3, 3)), nn.Conv2d, nn.Conv2d, "must not contain lazy", TypeError)
        self.check(sequential(), nn.Conv2d, lambda: nn.LazyConv2d(3, 3), "becomes a lazy layer")

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"model": nn.ReLU}, "model must be a module"),
            ({"old": "bn1"}, "old must be a class of modules, a tuple of such classes, or a predicate, got 'bn1'"),
            ({"old": nn.ReLU()}, "old must be a class of modules"),
            ({"old": (nn.ReLU, int)}, "old must be a class of modules"),
            ({"new": "SiLU"}, "new must be a constructor such as nn.ReLU, or a module to copy, got 'SiLU'"),
            ({"new": nn.LazyConv2d}, "new must not be lazy"),
            ({"new": lambda: None}, "new must return a module, got NoneType"),
            ({"inplace": 1}, "inplace must be True or False, got 1"),
        ],
    )
    def test_arguments(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            tnn.replace(**{"model": sequential(), "old": nn.ReLU, "new": nn.SiLU, **kwargs})


@pytest.mark.parametrize("inplace", [True, False])
def test_a_function_may_use_parts_of_the_layer(inplace: bool) -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    model, x = nn.Sequential(layer).eval(), torch.randn(1, 4, 9, 9)
    expected = layer[0](layer[1](x))
    swapped = tnn.replace(
        model, lambda path, _: path == "0", lambda layer: nn.Sequential(layer[1], layer[0]), inplace=inplace
    )
    assert torch.equal(swapped(x), expected)
