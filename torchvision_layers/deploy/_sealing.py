"""The checksum at the end of each file, by which a byte that is missing or altered is seen before anything reads it.

Checksums of zip records leave out names, offsets and padding, and ONNX has none. Here it covers every byte, and stands
where the readers of each format pass over it: in the comment of the zip file, in the last property of the ONNX model,
behind the program of executorch.
"""

import hashlib
from pathlib import Path

__all__ = ["seal_onnx", "seal_program", "seal_zip", "sealed_content"]

_DIGITS = 64
_COMMENT = b"torchvision_layers.deploy sha256 "
# A field of a protocol buffer: metadata_props (number 14) with a key (1) and a value (2), each with its length.
_KEY = b"torchvision_layers.sha256"
_ENTRY = b"\x0a" + bytes([len(_KEY)]) + _KEY + b"\x12" + bytes([_DIGITS])
_PROPERTY = b"\x72" + bytes([len(_ENTRY) + _DIGITS]) + _ENTRY


def seal_zip(content: bytes) -> bytes:
    """A zip file, which must not have a comment, with its checksum."""
    if content[-22:-18] != b"PK\x05\x06" or content[-2:] != b"\0\0":
        raise ValueError("content must be a zip file without a comment")
    return _sealed(content[:-2] + (len(_COMMENT) + _DIGITS).to_bytes(2, "little"), _COMMENT)


def seal_onnx(content: bytes) -> bytes:
    """An ONNX model with its checksum."""
    return _sealed(content, _PROPERTY)


def seal_program(content: bytes) -> bytes:
    """A program of executorch, whose header says where it ends, with its checksum."""
    return _sealed(content, _COMMENT)


def _sealed(content: bytes, mark: bytes) -> bytes:
    return content + mark + hashlib.sha256(content).hexdigest().encode()


def sealed_content(path: Path) -> bytes:
    """The bytes of a file whose checksum is right. Errors: ``ValueError`` for another file."""
    content = path.read_bytes()
    for mark in (_COMMENT, _PROPERTY):
        end = len(content) - len(mark) - _DIGITS
        if end > 0 and content[end : end + len(mark)] == mark:
            digest = hashlib.sha256(memoryview(content)[:end]).hexdigest().encode()
            if content[-_DIGITS:] != digest:
                raise ValueError(f"{path} was altered since it was written: its checksum is another")
            return content
    raise ValueError(f"{path} is cut off, or was not written by deploy.export: it does not end in a checksum")
