"""Everything that imports ``torch.ao``, which torch will remove: import the modules here on first use only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["explain_missing_torch_ao", "ignore_deprecations"]


@contextmanager
def explain_missing_torch_ao() -> Iterator[None]:
    """Turns a failed import from this package into an ``ImportError`` that names an alternative."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"engine='eager' needs torch.ao.quantization, which cannot be imported here ({error}); "
            "engine='pt2e' does not need it"
        ) from error


@contextmanager
def ignore_deprecations() -> Iterator[None]:
    """Ignores the deprecation warnings of eager mode quantization, which a caller of this package cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor.*deprecated", category=UserWarning)
        yield
