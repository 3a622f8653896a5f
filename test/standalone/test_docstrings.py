"""Docstrings lose the ``tnn`` prefix, and examples that use layers outside of the file."""

from torchvision_layers.standalone._docstrings import adapt_docstring

DOCSTRING = '''\
    """A layer, of ``tnn.Here``.

    Examples::

        >>> tnn.Here(1)
        Here()
        >>> layer = enn.Elsewhere(
        ...     tnn.Here(1))
        >>> 1 + 1
        2
    """'''


def name_of(prefix: str, name: str) -> str | None:
    return {"Here": "HereOfModule"}.get(name)


def test_examples_of_absent_layers_are_removed() -> None:
    text = adapt_docstring(DOCSTRING, name_of)
    assert "of ``HereOfModule``." in text
    assert ">>> HereOfModule(1)\n        Here()\n        >>> 1 + 1\n" in text
    assert "Elsewhere" not in text
    assert "..." not in text


def test_title_without_examples_is_removed() -> None:
    text = DOCSTRING.replace("tnn.Here(1)", "tnn.Nowhere(1)").replace(">>> 1 + 1\n        2", "")
    assert adapt_docstring(text, name_of) == '    """A layer, of ``HereOfModule``.\n    """'
