"""Outcomes of a check other than success: a refusal with a known message, or a failure."""

import re

__all__ = ["COMPARISONS", "REFUSALS", "CheckError", "RefusedError", "refuse"]

#: Messages that a check accepts, as regular expressions, by the reason that the summary shows.
REFUSALS = {
    "experimental layer without a twin": r"which has no quantizable twin; pass allow_float=True",
    "transposed convolution": r"is a ConvTranspose\dd .*, which int8 is not known to run; pass allow_float=True",
    "transposed convolution in a graph": r"\(ConvTranspose\dd, .* would stay in float: its (input and )?weight cannot "
    r"be quantized; pass allow_float=True",
    "training of CoordConv": r"is a CoordConv2d .*, which int8 is not known to run; pass allow_float=True",
    "weight of its own in a forward": r"whose forward calls \w+ with a weight of its own; call a child",
    "layer called at several scales in float": r"calls several times, with results of very different sizes",
    "weight read in a forward": r"whose forward reads \S+ in",
    "weight that changes in training": r"computes its weight in every forward or something else in training",
    "layer of torchvision in a standalone file": r"must use only torch and the standard library, got torchvision",
    "int8 state of other layers": r"^state_dict must be of the layers of this model, .* may depend on weights",
    "functions that TorchScript lacks": r"^model (cannot be scripted|can neither be scripted nor traced)",
    "functions that ONNX lacks": r"^torch cannot convert the model to ONNX, use format='pt2': "
    r"(\w+: [^\n]{,150}|its exporter has no form of [\w.]+)$",
    "batch norm without momentum in training": r"batch norms must have a number as momentum to be trained with",
    "weight whose norm changes in training": r"weights must be computed from parameters alone to be trained with",
    "computed weight in TorchScript": r"^model must have plain weights for TorchScript, .*: call deploy\.fold\(model\)",
    "default without annotation in TorchScript": r"annotate each argument of a forward whose default is None",
}
#: Messages of comparisons that find what tracing cannot see, with a pattern of the sources that may cause it.
COMPARISONS = {
    "tensor read after a write": (
        r"reads a tensor after an in-place module or a child wrote into it",
        r"inplace=True|(?<!init\.)\b\w+_\(|[-+*]= |\] = |\[1:\]\(",
    ),
    "branch on the image size": (
        r"cannot run .*, which the model accepts: (Guard failed|input must have sizes)",
        r"if x\d*\.shape",
    ),
    "branch on the image size in ONNX": (
        r"gives other values than the model for .* or one that was traced for some values or sizes only",
        r"if x\d*\.shape",
    ),
    # TorchScript assumes that dropout returns new memory, but in eval mode it returns its input.
    "write into the result of a dropout in TorchScript": (
        r"the file in format 'torchscript' gives other values than the model",
        r"Dropout[\s\S]*(?<!init\.)\b\w+_\(",
    ),
    "write into the result of a dropout in training": (
        r"switching the graph to eval mode changed the results",
        r"([Dd]ropout|StochasticDepth)[\s\S]*((?<!init\.)\b\w+_\(|[-+*]= |\] = )",
    ),
    # Torch.export takes a batch of one for a constant if the layout of an image depends on it.
    "batch of one in a graph of another layout": (
        r"cannot run .*\[1, .*, which the model accepts: .*Guard failed: .*size\(\)\[0\]",
        r"permute|movedim",
    ),
    # The average of all batches divides by their number, which torch.export takes for a Python number.
    "batch norm without momentum in a graph": (r"uses the value of a tensor as a Python number", r"momentum=None"),
}


class CheckError(AssertionError):
    """A wrong result, or an error that is not a clear refusal."""


class RefusedError(Exception):
    """The package refuses a model, for a known reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def refuse(error: Exception, text: str, is_early: bool = True) -> RefusedError:
    """The refusal of a model with the source ``text`` that ``error`` is.

    Errors: ``CheckError`` if it is none, or if it comes after calibration.
    """
    message = str(error)
    problems = message.splitlines()[1:] if _SEVERAL.match(message) else [message]
    reasons = {_reason(problem, text) for problem in problems}
    shown = f"{type(error).__name__}: {message}"
    if None in reasons:
        raise CheckError(f"unknown error: {shown}") from error
    if not is_early:
        raise CheckError(f"refused after calibration: {shown}") from error
    return RefusedError(", ".join(sorted(filter(None, reasons))), message)


#: The first line of an error with a line for each problem.
_SEVERAL = re.compile(r"model has \d+ (parts that cannot become int8|problems):\n")


def _reason(problem: str, text: str) -> str | None:
    """The reason for which a message is known; ``None`` for any other message."""
    for reason, pattern in REFUSALS.items():
        if re.search(pattern, problem):
            return reason
    for reason, (pattern, cause) in COMPARISONS.items():
        if re.search(pattern, problem) and re.search(cause, text):
            return reason
    return None
