"""For each check, a mutant that the check must detect, and a correct layer that it must pass."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, InvalidInput, LayerSpec, Sample, ShapeExample

from . import mutant_layers as broken

__all__ = ["CONTROL", "DROPPING", "MORE_MUTANTS", "MUTANTS", "TWIN", "WITHOUT_MODE", "Mutant"]

SHAPE = (2, 3, 6, 7)
SAME_SHAPE = st.tuples(st.integers(0, 3), st.just(3), st.integers(1, 8), st.integers(1, 8)).map(
    lambda shape: ShapeExample({}, shape, shape)
)
NO_CHANNELS = BadArguments(InvalidInput.CHANNELS, {"channels": 0}, ValueError, "channels must be at least 1, got 0")


def spec(cls: Callable[..., nn.Module], **fields: object) -> LayerSpec:
    sample = Sample("mutant", {}, SHAPE, broken.control_reference, reads_mode=True)
    return LayerSpec(cls, (sample,), (NO_CHANNELS,), shape_strategy=SAME_SHAPE, **fields)


def twin_spec(
    twin: type[nn.Module], activation_layer: type[nn.Module] = nn.ReLU, cls: type[nn.Module] = tnn.ConvNormAct
) -> LayerSpec:
    kwargs = {"in_channels": 3, "out_channels": 5}
    if activation_layer is not nn.ReLU:
        kwargs["activation_layer"] = activation_layer
    sample = Sample(f"mutant {activation_layer.__name__}", kwargs, (2, 3, 7, 9))
    return LayerSpec(cls, (sample,), twin=twin)


def _silu_spec(cls: type[nn.Module]) -> LayerSpec:
    kwargs = {"in_channels": 3, "out_channels": 5, "activation_layer": nn.SiLU}
    sample = Sample("silu", kwargs, (2, 3, 7, 9), islands=(nn.SiLU,))
    return LayerSpec(cls, (sample,), twin=quantized.QuantizableConvNormAct)


CONTROL = spec(broken.Control)
DROPPING = LayerSpec(broken.Dropping, (Sample("dropping", {}, SHAPE, is_random=True, reads_mode=True),))
WITHOUT_MODE = LayerSpec(nn.ReLU, (Sample("sound", {}, SHAPE, reads_mode=False),))
TWIN = twin_spec(quantized.QuantizableConvNormAct)


@dataclass(frozen=True)
class Mutant:
    """A broken layer, a pattern in the message of its failure, and a correct layer that passes the same check."""

    broken: LayerSpec
    message: str
    control: LayerSpec = CONTROL


_ALTERNATING = LayerSpec(
    broken.AlternatingStrides, (Sample("mutant", {}, SHAPE),), twin=quantized.QuantizableConvNormAct
)

# An undeclared float fallback, which the check must detect.
_FLOAT_FALLBACK = Mutant(twin_spec(quantized.QuantizableConvNormAct, nn.SiLU), "AssertionError", TWIN)

MUTANTS: dict[str, Mutant] = {
    "reference": Mutant(spec(broken.Reference), "Not equal to tolerance"),
    "out_shape": Mutant(spec(broken.OutShape), "the formula"),
    "batch_indep": Mutant(spec(broken.BatchIndep), "not close"),
    "determinism": Mutant(spec(broken.Determinism), "call 8 differs from the first"),
    "deterministic": Mutant(spec(broken.Deterministic), "put_.* does not have a deterministic implementation"),
    "random_flag": Mutant(spec(broken.RandomFlag), "draws random numbers, is_random=False"),
    "stochastic": Mutant(
        LayerSpec(broken.Stochastic, (Sample("dropping", {}, SHAPE, is_random=True),)), "not close", DROPPING
    ),
    "no_mutation": Mutant(spec(broken.NoMutation), "the input changed"),
    "no_broadcast": Mutant(spec(broken.NoBroadcast), "broadcasts"),
    "gradcheck": Mutant(spec(broken.Gradcheck), "GradcheckError"),
    "gradcheck_slow": Mutant(spec(broken.GradcheckSlow), "GradcheckError"),
    "gradgradcheck": Mutant(spec(broken.Gradgradcheck), "GradcheckError"),
    "grads_reach": Mutant(spec(broken.GradsReach), "no gradient reaches unused"),
    "noncontig": Mutant(spec(broken.Noncontig), "not close"),
    "functional": Mutant(spec(broken.Functional), "vmap"),
    "checkpoint": Mutant(spec(broken.Checkpoint), "output or gradients differ"),
    "factory_kwargs": Mutant(spec(broken.FactoryKwargs), "scale is on cpu"),
    "no_loose_tensor": Mutant(spec(broken.NoLooseTensor), "keeps a tensor in scales"),
    "no_shared_module": Mutant(spec(broken.NoSharedModule), "again is the same module as act"),
    "train_eval_flag": Mutant(
        LayerSpec(broken.TrainEvalFlag, (Sample("mutant", {}, SHAPE, reads_mode=False),)), "reads_mode=False"
    ),
    "statistics": Mutant(spec(broken.Statistics), "norm.running_mean"),
    "meta": Mutant(spec(broken.Meta), "meta"),
    "other_device": Mutant(spec(broken.OtherDevice), "makes a tensor on cpu for an input on cuda"),
    "skip_init": Mutant(spec(broken.SkipInit), "meta"),
    "copies": Mutant(spec(broken.Copies), "outputs differ after"),
    "dtypes": Mutant(spec(broken.Dtypes), "returns torch.float32 for torch.bfloat16"),
    "channels_last": Mutant(spec(broken.ChannelsLast), "layer returns another layout"),
    "empty_batch": Mutant(spec(broken.EmptyBatch), "reshape tensor of 0 elements"),
    "errors": Mutant(spec(broken.Errors), "was accepted by the constructor"),
    "unknown_keyword": Mutant(spec(broken.UnknownKeyword), "raised no error"),
    "wrong_width": Mutant(spec(broken.WrongWidth), "an input of shape"),
    "fx": Mutant(spec(broken.Fx), "TraceError"),
    "script": Mutant(spec(broken.Script), "UnsupportedNodeError"),
    "compile": Mutant(spec(broken.Compile), "Unsupported"),
    "export": Mutant(spec(broken.Export), "ConstraintViolation|UserError"),
    "onnx": Mutant(spec(broken.Onnx), "Conversion|Dispatch|ONNX"),
    "inductor": Mutant(spec(broken.OtherWhenCompiled), "not close"),
    "aoti": Mutant(spec(broken.OtherWhenCompiled), "not close"),
    "ddp": Mutant(spec(broken.OtherInAGroup), "not close"),
    "fsdp2": Mutant(spec(broken.OtherInAGroup), "not close"),
    "fsdp2_meta": Mutant(spec(broken.Fsdp2Meta), "outputs differ"),
    "syncbn": Mutant(spec(broken.SyncBn), "outputs differ"),
    "ddp_two": Mutant(spec(broken.OtherInAGroup), "not close"),
    "fsdp2_two": Mutant(spec(broken.OtherInAGroup), "not close"),
    "twin_keys": Mutant(twin_spec(broken.TwinOfOtherKeys), "the keys differ", TWIN),
    "fuse": Mutant(twin_spec(broken.TwinThatDoesNotFuse, cls=broken.NeverFused), "a batch norm is left", TWIN),
    "golden": Mutant(
        LayerSpec(
            broken.different_layer_with_a_recorded_name(),
            (Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 7, 9)),),
        ),
        "not close",
        LayerSpec(
            tnn.ConvNormAct,
            (Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 7, 9)),),
        ),
    ),
    "pt2e_ptq": Mutant(spec(broken.FarFromZero), "dB to float"),
    "pt2e_io": Mutant(spec(broken.AlternatingStrides), "outputs differ after"),
    "pt2e_qat": Mutant(spec(broken.Frozen), "does not require grad"),
    "onnx_qdq": Mutant(spec(broken.Onnx), "Conversion|Dispatch|ONNX"),
    "ptq_eager": _FLOAT_FALLBACK,
    "qat_eager": _FLOAT_FALLBACK,
    "int8_io": Mutant(_ALTERNATING, "outputs differ after", TWIN),
}

#: More mutants, by check id.
MORE_MUTANTS: tuple[tuple[str, Mutant], ...] = (
    ("other_device", Mutant(spec(broken.OtherDeviceInBackward), "makes a tensor on cpu for an input on meta")),
    ("other_device", Mutant(spec(broken.ReadsAValue), "DataDependentOutput.*local_scalar_dense")),
    ("qat_eager", Mutant(_ALTERNATING, "after resuming", TWIN)),
    ("pt2e_qat", Mutant(spec(broken.AlternatingStrides), "after resuming")),
    ("ptq_eager", Mutant(_silu_spec(broken.WithHook), r"SiLU is in float at \['2'\]", _silu_spec(tnn.ConvNormAct))),
)
