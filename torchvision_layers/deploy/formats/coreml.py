"""Packages for Core ML, in float16, float32 or int8. Only Apple's systems run them; their structure is checked."""

import copy
import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from torch.export import ExportedProgram

from ..._utils.quiet import quiet
from .._metadata import NAME
from .._subject import Subject
from .program import export_fixed, root_cause

__all__ = ["restrict", "serialize_float16", "serialize_float32"]

_CONVS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}

restrict = partial(export_fixed, format="coreml")


def serialize_float16(subject: Subject, metadata: str) -> dict[str, bytes]:
    return _serialize(subject, metadata, "FLOAT16")


def serialize_float32(subject: Subject, metadata: str) -> dict[str, bytes]:
    return _serialize(subject, metadata, "FLOAT32")


def _serialize(subject: Subject, metadata: str, precision: str) -> dict[str, bytes]:
    """The files of a package. Errors: ``RuntimeError`` if coremltools cannot convert the model, or writes another."""
    signature, program = subject.signature, subject.program
    assert program is not None
    with quiet():
        import coremltools

        outputs = [coremltools.TensorType(name=name) for name in signature.outputs]
        try:
            package = coremltools.convert(
                copy.deepcopy(program).run_decompositions({}),
                outputs=outputs,
                minimum_deployment_target=coremltools.target.iOS17,
                compute_precision=getattr(coremltools.precision, precision),
                skip_model_load=True,
            )
            spec = package.get_spec()
            for value, name in zip(list(spec.description.input), [s.name for s in signature.inputs], strict=True):
                coremltools.utils.rename_feature(spec, value.name, name)
            package = coremltools.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)
        except Exception as error:  # it raises many types
            raise RuntimeError(f"coremltools cannot convert the model: {root_cause(error)}") from error
        package.user_defined_metadata[NAME] = metadata
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.mlpackage"
            package.save(str(path))
            _check(subject, metadata, path)
            files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: content for name, content in files.items() if name.split("/")[0] in ("Data", "Manifest.json")}


def _check(subject: Subject, metadata: str, path: Path) -> None:
    """Compares the structure of a package with the program, because it cannot run here.

    Errors: ``RuntimeError`` if inputs, outputs, metadata, or the number of convolutions or linear layers are others.
    """
    with quiet():
        import coremltools

        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert subject.program is not None
    function = spec.mlProgram.functions["main"]
    operators = Counter(operator.type for operator in function.block_specializations[function.opset].operations)
    inputs = {value.name: list(value.type.multiArrayType.shape) for value in spec.description.input}
    expected = {spec.name: list(spec.shape) for spec in subject.signature.inputs}
    found = {
        "inputs": inputs,
        "outputs": [value.name for value in spec.description.output],
        "convolutions": operators["conv"] + operators["conv_transpose"],
        "linear layers": operators["linear"],
        "metadata": json.loads(spec.description.metadata.userDefined[NAME]),
    }
    required = {
        "inputs": expected,
        "outputs": list(subject.signature.outputs),
        "convolutions": _count(subject.program, _CONVS),
        "linear layers": _count(subject.program, {"linear"}),
        "metadata": json.loads(metadata),
    }
    for name, value in required.items():
        if found[name] != value:
            raise RuntimeError(
                f"the package has other {name} than the model: {found[name]!r:.200} in place of {value!r:.200}"
            )


def _count(program: ExportedProgram, names: set[str]) -> int:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return sum(getattr(node.target, "_opname", "") in names for node in calls)
