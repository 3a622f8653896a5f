"""Lowered programs of torch.export, which run oneDNN's kernels without a compiler."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..._utils.inputs import Inputs
from ..._utils.structure import flatten
from .._metadata import NAME, parse
from .._signature import Signature, forward_signature, plain
from .._subject import Subject
from ..integrity.archive import Archive
from ..lower import lower
from ..lowering.int8_kernels import check_exact_products
from ..lowering.kernels import check_onednn
from ..lowering.model import LoweredModel, accepts_sizes
from ..lowering.tracing import TraceableProgram, shape_kernels
from .graph import Graph, dtype_of
from .packing import PackedWeight, read_packing
from .program import drop_broken_guards, export_subject, rules_to_check, with_program
from .pt2 import save
from .size_rules import check_rules

__all__ = ["MARKER", "deserialize", "restrict", "serialize"]

_RULES = "rules.json"
#: The record that only files of lowered programs have: the rules for sizes, which the program checks itself.
MARKER = f"extra/{_RULES}"


def restrict(subject: Subject) -> Subject:
    """The subject with its lowered model, for the sizes that this takes.

    Errors: those of :func:`lower`, with a remedy.
    """
    model = subject.model
    try:
        lowered = (
            model if isinstance(model, LoweredModel) else lower(model, subject.example.kwargs or subject.example.args)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        # Subclasses may have other arguments.
        cls = next(cls for cls in (TypeError, ValueError, RuntimeError) if isinstance(error, cls))
        raise cls(f"{error}; or pass lowered=False, to write the model as it is") from error
    sizes = lowered._signature.sizes
    shapes = [
        tuple(axis if size is None else size for axis, size in zip(spec.shape, fixed, strict=True))
        for spec, fixed in zip(subject.signature.inputs, sizes, strict=True)
    ]
    resized = tuple(inputs for inputs in subject.resized if accepts_sizes(lowered, inputs))
    subject = replace(subject, lowered=lowered, signature=subject.signature.with_shapes(shapes), resized=resized)
    return with_program(subject, _export, may_be_slow=True)  # lower fixes sizes itself where that is slow


def _export(subject: Subject) -> ExportedProgram:
    """The program, with the calls that pack its weights in their places."""
    assert subject.lowered is not None
    model = TraceableProgram(subject.lowered, forward_signature(subject.model))
    with shape_kernels():
        program = export_subject(replace(subject, model=model), runs_single=False)
    for key, packing in model.packings.items():
        program.state_dict[key] = PackedWeight.of(packing)
    return program


def serialize(subject: Subject, metadata: str) -> bytes:
    """A file that packs its weights when it is loaded, and calls the same operators as the lowered model.

    Errors: ``RuntimeError`` if torch cannot export the program, or if it computes something else.
    """
    program = subject.program
    assert program is not None
    drop_broken_guards(program, subject)  # they are about memory layouts, not about results
    rules = rules_to_check(program, subject)
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", "") in ("mkldnn", "onednn"):
            # torch.export cannot save empty lists of numbers; operators without parameters ignore this one.
            node.args = tuple([-1] if isinstance(arg, (list, tuple)) and not arg else arg for arg in node.args)
    content = save(program, subject, {NAME: metadata, _RULES: json.dumps(rules)})
    _check_loading(content, subject)
    return content


def _check_loading(content: bytes, subject: Subject) -> None:
    """Errors: ``RuntimeError`` unless torch alone loads a program that computes what the lowered model does."""
    program = torch.export.load(io.BytesIO(content)).module()
    for inputs in subject.compared:
        outputs = flatten(plain(inputs.map(Tensor.clone).run(program)))[0]
        expected = flatten(inputs.run(subject.lowered))[0]  # type: ignore[arg-type]  # checked by the caller
        if not all(map(torch.equal, outputs, expected)):
            raise RuntimeError(
                "torch.export changes the lowered program, please report the model; or pass lowered=False"
            )


def deserialize(content: bytes, path: Path) -> tuple[Callable[..., Any], str]:
    """The program, without torch.export: loading takes a tenth of the time, and nothing but operators can run.

    Errors: ``ValueError`` if this CPU or version of torch lacks what the program needs, or for another program.
    """
    archive = Archive(content, path)
    metadata = archive.read(f"extra/{NAME}").decode()
    signature = Signature.from_json(parse(metadata, path))
    rules = json.loads(archive.read(MARKER))
    graph = Graph.of(json.loads(archive.read("models/model.json")))
    try:
        check_onednn()
        if any(str(step.target).startswith("onednn.q") for step in graph.steps):
            check_exact_products()
        tensors = {**_tensors(archive, "weights"), **_tensors(archive, "constants")}
        function = graph.bind(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot run here: {error}; a file that deploy.export writes with lowered=False or format='onnx' can"
        ) from error
    names = [spec.name for spec in signature.inputs]

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = Inputs(args, kwargs).tensors()
        check_rules(rules, names, [tuple(tensor.shape) for tensor in tensors])
        return _restore(signature.output, iter(function(*tensors)))

    return run, metadata


def _tensors(archive: Archive, kind: str) -> dict[str, Tensor]:
    """The weights or the constants of a file, packed for this CPU if they have to be."""
    storages, tensors = dict[str, Tensor](), dict[str, Tensor]()
    config = json.loads(archive.read(f"data/{kind}/model_{kind}_config.json"))["config"]
    for key, entry in config.items():
        record, meta = f"data/{kind}/{entry['path_name']}", entry["tensor_meta"]
        if entry["use_pickle"]:
            packing = read_packing(archive.view(record), archive.path)
            tensors[key] = packing.run()
            continue
        if record not in storages:
            content = bytearray(archive.view(record))
            storages[record] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
        sizes, strides = ([size["as_int"] for size in meta[name]] for name in ("sizes", "strides"))
        values = storages[record].view(dtype_of(meta["dtype"]))
        tensors[key] = values.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
    return tensors


def _restore(structure: Mapping[str, Any], values: Iterator[Any]) -> Any:
    """The output with these tensors and numbers in the place of those in the example."""
    ((kind, value),) = structure.items()
    if kind == "dict":
        return {key: _restore(item, values) for key, item in value}
    if kind in ("tuple", "list"):
        items = [_restore(item, values) for item in value]
        return tuple(items) if kind == "tuple" else items
    return next(values)
