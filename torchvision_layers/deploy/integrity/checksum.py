"""The checksum at the end of each file. It reveals a missing or altered byte before anything else reads the file.

The checksums of zip records do not cover names, offsets and padding, and ONNX has none. This one covers every byte. The
readers of each format skip it: it is a comment of a zip file, which a LiteRT
model ends in, or of XML, the last property of an ONNX model, and at the
end of an ExecuTorch program.
"""

import hashlib
import io
import zipfile
from enum import Enum
from pathlib import Path

__all__ = ["Container", "append_checksum", "container_of", "read_verified"]

_DIGITS = 64
_COMMENT = b"torchvision_layers.deploy sha256 "
# A field of a protocol buffer: metadata_props (number 14) with a key (1) and a value (2), each with its length.
_KEY = b"torchvision_layers.sha256"
_ENTRY = b"\x0a" + bytes([len(_KEY)]) + _KEY + b"\x12" + bytes([_DIGITS])
_PROPERTY = b"\x72" + bytes([len(_ENTRY) + _DIGITS]) + _ENTRY


# For each place of the checksum, the bytes before and after it.
_MARKS = ((_COMMENT, b""), (_PROPERTY, b""), (b"<!-- " + _COMMENT, b" -->\n"))


class Container(Enum):
    """The kind of file that a format is stored in."""

    ZIP = "zip file"
    ONNX = "ONNX model"
    EXECUTORCH = "ExecuTorch program"
    FOLDER = "folder"
    LITERT = "LiteRT model"
    XML = "XML file"


def container_of(content: bytes) -> Container:
    """The kind of a file with a valid checksum."""
    if content[4:8] == b"ET12":
        return Container.EXECUTORCH
    if content[4:8] == b"TFL3":
        return Container.LITERT
    if content[:5] == b"<?xml":
        return Container.XML
    return Container.ZIP if content[:4] == b"PK\x03\x04" else Container.ONNX  # a protocol buffer has no magic number


def append_checksum(content: bytes, container: Container) -> bytes:
    """``content`` with its checksum. Errors: ``ValueError`` unless a zip file is complete and has no comment."""
    if container in (Container.ZIP, Container.LITERT):  # a LiteRT model ends in a zip file
        if content[-22:-18] != b"PK\x05\x06" or content[-2:] != b"\0\0":
            raise ValueError("content must be a zip file without a comment")
        content = content[:-2] + (len(_COMMENT) + _DIGITS).to_bytes(2, "little")
    before, after = _MARKS[{Container.ONNX: 1, Container.XML: 2}.get(container, 0)]
    return content + before + hashlib.sha256(content).hexdigest().encode() + after


def read_verified(path: Path) -> bytes:
    """The bytes of a file. Errors: ``ValueError`` unless the file ends in its checksum."""
    content = path.read_bytes()
    for before, after in _MARKS:
        start = len(content) - len(after) - _DIGITS
        end = start - len(before)
        if end > 0 and content[end:start] == before and content.endswith(after):
            digest = hashlib.sha256(memoryview(content)[:end]).hexdigest().encode()
            if content[start : start + _DIGITS] != digest:
                raise ValueError(f"{path} was altered after it was written: its checksum does not match")
            return content
    raise ValueError(
        f"{path} is cut off, or was not written by deploy.export: it does not end in a checksum{_hint(content)}"
    )


def _hint(content: bytes) -> str:
    """The loader of another file of torch, to be added to an error."""
    if not content:
        return "; it is empty"
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return ""
    for end, loader in (("/constants.pkl", "jit.load"), ("/models/model.json", "export.load"), ("/data.pkl", "load")):
        if any(name.endswith(end) for name in names):
            return f"; torch.{loader} may read it"
    return ""
