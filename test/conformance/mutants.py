"""For each row of the matrix a layer that is broken in the way the row is there to find, and a sound one."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import BadArguments, Geometry, LayerSpec, Misuse, Sample

from . import mutant_layers as broken

__all__ = ["CONTROL", "DROPPING", "MORE_ROGUES", "ROGUES", "TWIN", "WITHOUT_MODE", "Rogue"]

SHAPE = (2, 3, 6, 7)
SAME_SHAPE = st.tuples(st.integers(0, 3), st.just(3), st.integers(1, 8), st.integers(1, 8)).map(
    lambda shape: Geometry({}, shape, shape)
)
NO_CHANNELS = BadArguments(Misuse.CHANNELS, {"channels": 0}, ValueError, "channels must be at least 1, got 0")


def spec(cls: Callable[..., nn.Module], **fields: object) -> LayerSpec:
    sample = Sample("rogue", {}, SHAPE, broken.control_reference, reads_mode=True)
    return LayerSpec(cls, (sample,), (NO_CHANNELS,), geometries=SAME_SHAPE, **fields)


def twin_spec(
    twin: type[nn.Module], activation_layer: type[nn.Module] = nn.ReLU, cls: type[nn.Module] = tnn.ConvNormAct
) -> LayerSpec:
    kwargs = {"in_channels": 3, "out_channels": 5}
    if activation_layer is not nn.ReLU:
        kwargs["activation_layer"] = activation_layer
    sample = Sample(f"rogue {activation_layer.__name__}", kwargs, (2, 3, 7, 9))
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
class Rogue:
    """A broken layer, what the row should say of it, and a sound one that the same row passes."""

    broken: LayerSpec
    says: str
    control: LayerSpec = CONTROL


_BY_TURNS = LayerSpec(broken.StridesByTurns, (Sample("rogue", {}, SHAPE),), twin=quantized.QuantizableConvNormAct)

# A float island where none is declared: silently left in float, which is what the row must see.
_ISLAND = Rogue(twin_spec(quantized.QuantizableConvNormAct, nn.SiLU), "AssertionError", TWIN)

ROGUES: dict[str, Rogue] = {
    "reference": Rogue(spec(broken.Reference), "Not equal to tolerance"),
    "out_shape": Rogue(spec(broken.OutShape), "the formula"),
    "batch_indep": Rogue(spec(broken.BatchIndep), "not close"),
    "determinism": Rogue(spec(broken.Determinism), "call 8 gives other values"),
    "random_flag": Rogue(spec(broken.RandomFlag), "draws random numbers, is_random=False"),
    "stochastic": Rogue(
        LayerSpec(broken.Stochastic, (Sample("dropping", {}, SHAPE, is_random=True),)), "not close", DROPPING
    ),
    "no_mutation": Rogue(spec(broken.NoMutation), "the input was changed"),
    "no_broadcast": Rogue(spec(broken.NoBroadcast), "stretches"),
    "gradcheck": Rogue(spec(broken.Gradcheck), "GradcheckError"),
    "gradcheck_slow": Rogue(spec(broken.GradcheckSlow), "GradcheckError"),
    "gradgradcheck": Rogue(spec(broken.Gradgradcheck), "GradcheckError"),
    "grads_reach": Rogue(spec(broken.GradsReach), "no gradient reaches unused"),
    "noncontig": Rogue(spec(broken.Noncontig), "not close"),
    "functional": Rogue(spec(broken.Functional), "vmap"),
    "checkpoint": Rogue(spec(broken.Checkpoint), "output or gradients differ"),
    "factory_kwargs": Rogue(spec(broken.FactoryKwargs), "scale is on cpu"),
    "no_loose_tensor": Rogue(spec(broken.NoLooseTensor), "keeps a tensor in scales"),
    "no_shared_module": Rogue(spec(broken.NoSharedModule), "again is the module of act"),
    "train_eval_flag": Rogue(
        LayerSpec(broken.TrainEvalFlag, (Sample("rogue", {}, SHAPE, reads_mode=False),)), "reads_mode=False"
    ),
    "statistics": Rogue(spec(broken.Statistics), "norm.running_mean"),
    "meta": Rogue(spec(broken.Meta), "meta"),
    "skip_init": Rogue(spec(broken.SkipInit), "meta"),
    "copies": Rogue(spec(broken.Copies), "the state dict gives other values"),
    "dtypes": Rogue(spec(broken.Dtypes), "gives torch.float32 for torch.bfloat16"),
    "channels_last": Rogue(spec(broken.ChannelsLast), "layer gives another layout"),
    "empty_batch": Rogue(spec(broken.EmptyBatch), "reshape tensor of 0 elements"),
    "errors": Rogue(spec(broken.Errors), "was accepted by the constructor"),
    "unknown_keyword": Rogue(spec(broken.UnknownKeyword), "answered with nothing"),
    "wrong_width": Rogue(spec(broken.WrongWidth), "an input of shape"),
    "fx": Rogue(spec(broken.Fx), "TraceError"),
    "script": Rogue(spec(broken.Script), "UnsupportedNodeError"),
    "compile": Rogue(spec(broken.Compile), "Unsupported"),
    "export": Rogue(spec(broken.Export), "ConstraintViolation|UserError"),
    "onnx": Rogue(spec(broken.Onnx), "Conversion|Dispatch|ONNX"),
    "inductor": Rogue(spec(broken.OtherWhenCompiled), "not close"),
    "aoti": Rogue(spec(broken.OtherWhenCompiled), "not close"),
    "ddp": Rogue(spec(broken.OtherInAGroup), "not close"),
    "fsdp2": Rogue(spec(broken.OtherInAGroup), "not close"),
    "fsdp2_meta": Rogue(spec(broken.Fsdp2Meta), "other values"),
    "syncbn": Rogue(spec(broken.SyncBn), "other values"),
    "ddp_two": Rogue(spec(broken.OtherInAGroup), "not close"),
    "fsdp2_two": Rogue(spec(broken.OtherInAGroup), "not close"),
    "twin_keys": Rogue(twin_spec(broken.TwinOfOtherKeys), "the keys differ", TWIN),
    "fuse": Rogue(twin_spec(broken.TwinThatDoesNotFuse, cls=broken.NeverFused), "a batch norm is left", TWIN),
    "golden": Rogue(
        LayerSpec(
            broken.other_values_under_a_recorded_name(),
            (Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 7, 9)),),
        ),
        "not close",
        LayerSpec(
            tnn.ConvNormAct,
            (Sample("default", {"in_channels": 3, "out_channels": 5}, (2, 3, 7, 9)),),
        ),
    ),
    "pt2e_ptq": Rogue(spec(broken.FarFromZero), "dB to float"),
    "pt2e_io": Rogue(spec(broken.StridesByTurns), "the state dict gives other values"),
    "pt2e_qat": Rogue(spec(broken.Frozen), "does not require grad"),
    "onnx_qdq": Rogue(spec(broken.Onnx), "Conversion|Dispatch|ONNX"),
    "ptq_eager": _ISLAND,
    "qat_eager": _ISLAND,
    "int8_io": Rogue(_BY_TURNS, "the state dict gives other values", TWIN),
}

#: Other faults that a row is there to find, by its id.
MORE_ROGUES: tuple[tuple[str, Rogue], ...] = (
    ("qat_eager", Rogue(_BY_TURNS, "resumed from its state", TWIN)),
    ("pt2e_qat", Rogue(spec(broken.StridesByTurns), "resumed from its state")),
    ("ptq_eager", Rogue(_silu_spec(broken.WithAHook), r"SiLU is in float at \['2'\]", _silu_spec(tnn.ConvNormAct))),
)
