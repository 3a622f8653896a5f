"""Standalone files build the same model, to the bit."""

import re

from torchvision_layers import standalone

from .comparing import check_equal
from .outcomes import CheckError, refuse
from .source import load
from .subject import Subject, outputs_of

__all__ = ["check_standalone"]


def check_standalone(subject: Subject) -> None:
    if "tnn." not in subject.text and "enn." not in subject.text:
        return
    try:
        text = standalone.source(f"{subject.path}:build")
    except Exception as error:
        raise refuse(error, subject.text) from error
    if re.search(r"^\s*(import|from) torchvision", text, re.MULTILINE):
        raise CheckError("a standalone file imports torchvision")
    model = load(text, subject.folder).build()
    expected = subject.model()
    if list(model.state_dict()) != list(expected.state_dict()):
        raise CheckError("a standalone file builds a model with other keys")
    inputs = subject.inputs()
    check_equal(outputs_of(model, inputs), outputs_of(expected, inputs), "standalone")
