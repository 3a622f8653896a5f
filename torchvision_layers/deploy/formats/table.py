"""The table of file formats, and the lookups in it."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..._utils.checks import did_you_mean
from .._subject import int8_engine
from ..integrity.archive import Archive
from ..integrity.checksum import Container, container_of
from . import aoti, coreml, executorch, litert, lowered, onnx, openvino, pt2, torchscript
from .format import Format

__all__ = [
    "FORMATS",
    "LOWERED",
    "check_suffix",
    "check_support",
    "default_format",
    "find_format",
    "format_of",
    "format_of_suffix",
    "list_suffixes",
]

#: Backends whose int8 models torch's own kernels for x86 do not compute, so that a program in torch is float.
_OTHER_BACKENDS = ("litert", "tensorrt", "xnnpack")

_ONNX = Format(
    "onnx",
    ".onnx",
    "float. Loads with ONNX Runtime and other ONNX runtimes.",
    Container.ONNX,
    onnx.restrict,
    onnx.serialize,
    onnx.deserialize,
    max_weight_bytes=onnx.MAX_WEIGHT_BYTES,
    writer_packages=("onnx", "onnxscript"),
    reader_packages=("onnxruntime",),
    install='pip install "torchvision_layers[onnx]"',
    has_threads=True,
    has_providers=True,
)

_COREML = Format(
    "coreml",
    ".mlpackage",
    "float16 or int8, for inputs of one size, as a folder. Its structure is checked; only Apple's systems run it.",
    Container.FOLDER,
    coreml.restrict,
    coreml.serialize_float16,
    None,
    engine="pt2e",
    float_backends=("tensorrt", "xnnpack"),
    is_suffix_required=True,
    writer_packages=("coremltools",),
    install='pip install "torchvision_layers[coreml]"',
)

FORMATS = {
    format.name: format
    for format in (
        Format(
            "torchscript",
            ".pt",
            "float or int8. Loads with torch.jit.load, in Python and in C++ (libtorch).",
            Container.ZIP,
            torchscript.restrict,
            torchscript.serialize,
            torchscript.deserialize,
            engine="eager",
            other_suffixes=(".ts",),
            marker="constants.pkl",
        ),
        Format(
            "pt2",
            ".pt2",
            "float or int8. Loads with torch.export.load, to run in Python or to compile.",
            Container.ZIP,
            pt2.restrict,
            pt2.serialize,
            pt2.deserialize,
            engine="pt2e",
            marker="models/",
        ),
        Format(
            "aoti",
            ".pt2",
            "float or int8, compiled for this kind of processor; needs a C++ compiler. Loads with "
            "torch._inductor.aoti_load_package, or in C++.",
            Container.ZIP,
            pt2.restrict,
            aoti.serialize,
            aoti.deserialize,
            engine="pt2e",
            float_backends=_OTHER_BACKENDS,
            has_int8_kernels=True,
            is_suffix_required=True,  # by the loader of torch
            marker="data/aotinductor/",
        ),
        _ONNX,
        replace(
            _ONNX,
            name="onnx-qdq",
            summary="int8, as QuantizeLinear and DequantizeLinear; always with --calibration. Loads with ONNX Runtime.",
            supports_float=False,
            engine="pt2e",
            backend="onnxruntime",
            has_int8_kernels=True,
        ),
        Format(
            "openvino",
            ".xml",
            "float or int8, in two files: the weights in .bin. Loads with OpenVINO.",
            Container.XML,
            onnx.restrict,
            openvino.serialize,
            openvino.deserialize,
            engine="pt2e",
            backend="onnxruntime",
            has_int8_kernels=True,
            is_suffix_required=True,
            beside=(openvino.WEIGHTS,),
            has_threads=True,
            max_weight_bytes=onnx.MAX_WEIGHT_BYTES,
            writer_packages=("onnx", "onnxscript"),
            reader_packages=("openvino",),
            install='pip install "torchvision_layers[openvino]"',
        ),
        _COREML,
        replace(
            _COREML,
            name="coreml-float32",
            summary="The same in float32.",
            serialize=coreml.serialize_float32,
            engine=None,
        ),
        Format(
            "litert",
            ".tflite",
            "float or int8, for inputs of one size. Loads with LiteRT, formerly TensorFlow Lite.",
            Container.LITERT,
            litert.restrict,
            litert.serialize,
            litert.deserialize,
            engine="pt2e",
            backend="litert",
            is_backend_fixed=True,  # LiteRT would run the unsigned activations of other backends in float
            has_int8_kernels=True,
            has_threads=True,
            writer_packages=("litert_torch",),
            reader_packages=("ai_edge_litert",),
            install='pip install "torchvision_layers[litert]"',
        ),
        Format(
            "executorch",
            ".pte",
            "float or int8, for batches of up to 16 and images of up to twice the size. Loads with the ExecuTorch "
            "runtimes on phones and boards.",
            Container.EXECUTORCH,
            executorch.restrict,
            executorch.serialize,
            executorch.deserialize,
            engine="pt2e",
            backend="xnnpack",
            is_backend_fixed=True,  # XNNPACK would run the unsigned activations of other backends in float
            has_int8_kernels=True,
            reader_packages=("executorch",),
            install="pip install executorch",
        ),
    )
}


#: Lowered programs, in the format "pt2". Their kernels sum and round in another order than those of the model.
LOWERED = replace(
    FORMATS["pt2"],
    serialize=lowered.serialize,
    deserialize=lowered.deserialize,
    restrict=lowered.restrict,
    float_backends=_OTHER_BACKENDS,
    has_int8_kernels=True,
    marker=lowered.MARKER,
)


def find_format(name: str, is_lowered: bool) -> Format:
    """The format of this name, for lowered programs or for models as they are.

    Errors: ``ValueError`` for an unknown name, or a format that does not contain lowered programs.
    """
    if not isinstance(name, str) or name not in FORMATS:
        suffix = f".{str(name).lower().lstrip('.')}"
        close = next((f": did you mean {f.name!r}?" for f in FORMATS.values() if suffix in f.suffixes), "")
        remedy = close or did_you_mean(name, FORMATS)
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}{remedy}")
    if is_lowered and name != LOWERED.name:
        raise ValueError(f"lowered=True is for format={LOWERED.name!r}, got format={name!r}")
    return LOWERED if is_lowered else FORMATS[name]


def default_format(suffix: str, is_int8: bool) -> Format | None:
    """The first format with ``suffix`` that supports float or int8 models."""
    for format in FORMATS.values():
        if suffix.lower() in format.suffixes and (format.engine if is_int8 else format.supports_float):
            return format
    return None


def format_of_suffix(path: Path, model: nn.Module) -> str:
    """The name of the format of ``path`` for a model; without a suffix, that of the default.

    Errors: ``ValueError`` for an unknown suffix.
    """
    engine, backend = int8_engine(model)
    if not path.suffix:
        return "torchscript" if engine == "eager" else LOWERED.name  # torch.export has no quantized dtypes
    formats = [format for format in FORMATS.values() if path.suffix.lower() in format.suffixes]
    if not formats:
        raise ValueError(f"path must end in {list_suffixes()} if format is None, got {path}")
    usable = [format for format in formats if format.supports(engine, backend)]
    return (*usable, default_format(path.suffix, engine is not None) or formats[0])[0].name


def list_suffixes() -> str:
    """All suffixes that a format is chosen by, for errors."""
    return ", ".join(sorted({suffix for format in FORMATS.values() for suffix in format.suffixes}))


def check_suffix(argument: str, path: Path, format: Format) -> None:
    """Errors: ``ValueError`` for the suffix of another format, or any but ``format``'s if its readers need that."""
    if format.is_suffix_required:
        is_right = path.suffix == format.suffix
    else:
        suffix = path.suffix.lower()
        is_right = suffix in format.suffixes or all(suffix not in other.suffixes for other in FORMATS.values())
    if not is_right:
        suffixes = " or ".join(format.suffixes)
        raise ValueError(f"{argument} must end in {suffixes} for format={format.name!r}, got {path}")


def format_of(content: bytes, path: Path) -> Format:
    """The format of a file, or another one with the same reader.

    Errors: ``ValueError`` if no format matches.
    """
    container = container_of(content)
    names = list(Archive(content, path)) if container is Container.ZIP else [""]
    for format in (LOWERED, *FORMATS.values()):
        if format.container is container and any(name.startswith(format.marker) for name in names):
            return format
    raise ValueError(f"{path} was not written by deploy.export: it matches none of the formats {', '.join(FORMATS)}")


def check_support(format: Format, model: nn.Module) -> None:
    """Errors: ``TypeError`` for a model that ``format`` does not support; ``ValueError`` for one that is too large."""
    engine, backend = int8_engine(model)
    if not format.supports(engine, backend):
        kind = "float" if engine is None else f"int8 of engine={engine!r} and backend={backend!r}"
        others = [other for other in FORMATS.values() if other.supports(engine, backend)]
        remedy = f"use format={' or '.join(repr(other.name) for other in others)}"
        if len(others) == 1 and others[0].suffix != format.suffix:
            remedy += f" and a path that ends in {others[0].suffix}"
        if format.engine is not None:
            remedy += (
                f", or call quantized.quantize(model, batches, engine={format.engine!r}, backend={format.backend!r})"
            )
        name = f"format={format.name!r}{' with lowered=True' if format is LOWERED else ''}"
        raise TypeError(f"{name} does not support a model that is {kind}: {remedy}")
    tensors = (*model.parameters(), *model.buffers())
    size = sum(tensor.nbytes for tensor in tensors if tensor.layout is torch.strided)  # sparse ones are small
    if format.max_weight_bytes is not None and size > format.max_weight_bytes:
        raise ValueError(
            f"format={format.name!r} holds at most {format.max_weight_bytes / 1e9:.1f} GB of weights, model has "
            f"{size / 1e9:.1f} GB: use format='pt2'"
        )
