"""Reading, collecting and rewriting Python source, for the tools that write layers to other files."""

try:
    import libcst  # noqa: F401
except ImportError as error:
    raise ImportError('writing source needs libcst: pip install "torchvision_layers[standalone]"') from error
