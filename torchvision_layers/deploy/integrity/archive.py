"""Zip files as torch writes them, with every record below one folder."""

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Archive"]


class Archive:
    """The records of a zip file, by their names below its folder.

    Errors: ``ValueError`` if ``content`` is not a zip file, or if another reader could find other records in it.
    """

    def __init__(self, content: bytes | memoryview, path: Path) -> None:
        self.path = path
        self._content = memoryview(content)
        try:
            self._file = zipfile.ZipFile(io.BytesIO(content))
            infos = self._file.infolist()
        except Exception as error:  # zipfile raises many types for bytes that only begin like a zip file
            raise ValueError(f"{path} is not a zip file written by torch: {error}") from error
        self._infos = {info.filename.partition("/")[2]: info for info in infos}
        # torch may pick the other of two records with one name, and it believes the stored offset of the directory.
        has_duplicates = len({name.lower() for name in self._infos}) < len(infos)
        if has_duplicates or not any(info.header_offset == 0 for info in infos):
            raise ValueError(f"{path} was not written by deploy.export: two readers could find different records in it")

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, name: str) -> bytes:
        """The bytes of one record. Errors: ``ValueError`` if there is no such record."""
        return self._file.read(self._info(name))

    def view(self, name: str) -> memoryview:
        """Like :meth:`read`, in place and without the checksum of the record, several times as fast.

        Errors: ``ValueError`` also for a record that is compressed.
        """
        info = self._info(name)
        with self._file.open(info):  # compares the name with that at the record
            pass
        start = info.header_offset
        name_length, extra_length = struct.unpack("<HH", self._content[start + 26 : start + 30])
        start += 30 + name_length + extra_length
        view = self._content[start : start + info.file_size]
        if info.compress_type != zipfile.ZIP_STORED or len(view) != info.file_size:
            raise ValueError(
                f"{self.path} was not written by deploy.export: its record {name} is compressed or cut off"
            )
        return view

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._infos:
            raise ValueError(f"{self.path} was not written by deploy.export: it has no record {name}")
        return self._infos[name]
