"""Zip files as torch writes them, with every record below one folder."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Archive"]


class Archive:
    """The records of a zip file, by their names below its folder.

    Errors: ``ValueError`` if ``content`` is not a zip file, or if another reader could find other records in it.
    """

    def __init__(self, content: bytes, path: Path) -> None:
        self.path = path
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
        if name not in self._infos:
            raise ValueError(f"{self.path} was not written by deploy.export: it has no record {name}")
        return self._file.read(self._infos[name])
