"""A model or a layer becomes one file that needs torch only."""

from pathlib import Path

from .._utils.atomic import atomic_path

__all__ = ["source", "write"]


def write(reference: str, path: str | Path, *, quantizable: bool = False, force: bool = False) -> Path:
    """Writes the file of :func:`source`; returns its path.

    Args:
        reference: as in :func:`source`.
        path: the file to write; an error leaves no part of it.
        quantizable: as in :func:`source`.
        force: replaces an existing file. Default: ``False``.

    Errors: those of :func:`source`; ``FileExistsError`` if the file exists, ``FileNotFoundError`` if its folder does
    not.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output must be in a folder that exists, got {path}")
    if path.suffix != ".py":
        raise ValueError(f"the output must end in .py, got {path}")
    text = source(reference, quantizable=quantizable)
    if path.exists() and not force:
        raise FileExistsError(f"the output must be a new file unless force=True (--force), got {path}")
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def source(reference: str, *, quantizable: bool = False) -> str:
    """Returns the text of a file with a model or layer and all code that it uses, which needs torch only.

    If ruff is installed, it formats the text.

    Args:
        reference: ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``: a function that makes a model, or a class.
        quantizable: replaces each layer by its quantizable twin, and adds ``QuantizableModel`` with ``fuse_model``, for
            ``torch.ao.quantization``. Default: ``False``.

    Errors: ``FileNotFoundError`` if there is no such file; ``ValueError`` if there is no such function, a name has no
    source, the code needs more than torch, or ``quantizable`` meets a layer without a twin; ``ImportError`` if libcst
    is not installed.
    """
    from ._file import text_of

    return text_of(reference, quantizable)
