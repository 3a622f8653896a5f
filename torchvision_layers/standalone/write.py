"""Writes a model or a layer as one file that needs only torch."""

from pathlib import Path

from .._utils.atomic import atomic_path

__all__ = ["source", "write"]


def write(reference: str, path: str | Path, *, quantizable: bool = False, force: bool = False) -> Path:
    """Writes the text of :func:`source` to a file, and returns its path.

    Args:
        reference: as in :func:`source`.
        path: a name that ends in ``.py``; after an error the file is as before.
        quantizable: as in :func:`source`.
        force: replaces an existing file. Default: ``False``.

    Errors: those of :func:`source`; ``ValueError`` for another ending, ``FileExistsError`` for an existing file,
    ``FileNotFoundError`` for a missing folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output must be in an existing folder, got {path}")
    if path.suffix != ".py":
        raise ValueError(f"the output must end in .py, got {path}")
    text = source(reference, quantizable=quantizable)
    if path.exists() and not force:
        raise FileExistsError(f"the output must be a new file unless force=True (--force), got {path}")
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def source(reference: str, *, quantizable: bool = False) -> str:
    """Returns a model or layer and all code that it uses as the text of one file, which needs only torch.

    Needs libcst, and formats the text if ruff is installed: ``pip install "torchvision_layers[standalone]"``.

    Args:
        reference: ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``: a function that returns a model, or a class.
        quantizable: replaces each layer by its quantizable twin, and adds ``QuantizableModel`` with ``fuse_model``, for
            use with ``torch.ao.quantization``. Default: ``False``.

    Errors: ``FileNotFoundError`` for a missing file; ``ValueError`` for a missing function, a name without source, code
    that needs more than torch, or with ``quantizable`` a layer without a twin; ``ImportError`` without libcst.
    """
    try:
        from ._file import text_of
    except ModuleNotFoundError as error:
        raise ImportError(f'standalone needs {error.name}: pip install "torchvision_layers[standalone]"') from error
    return text_of(reference, quantizable)
