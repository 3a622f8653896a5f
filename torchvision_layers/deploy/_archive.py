"""Records of a zip file as torch writes them, all below one folder."""

import io
import zipfile
from pathlib import Path

__all__ = ["record", "records"]


def records(content: bytes, path: Path) -> dict[str, zipfile.ZipInfo]:
    """What the file at ``path`` holds, by the names below its folder.

    Errors: ``ValueError`` for no such file, or one in which readers other than this may see something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
    except Exception as error:  # what comes of bytes that only look like a zip file
        raise ValueError(f"{path} is no zip file of torch: {error}") from error
    found = {info.filename.partition("/")[2]: info for info in infos}
    # Of two records of a name, torch may take the other; of a list that is not where it says, it takes the place said.
    is_said_twice = len({name.lower() for name in found}) < len(infos)
    if is_said_twice or not any(info.header_offset == 0 for info in infos):
        raise ValueError(f"{path} is no zip file as deploy.export writes it: it could be read in two ways")
    return found


def record(content: bytes, name: str, path: Path) -> bytes:
    """The bytes of one record. Errors: ``ValueError`` where there is none."""
    info = records(content, path).get(name)
    if info is None:
        raise ValueError(f"{path} was not written by deploy.export: it has no record {name}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(info)
