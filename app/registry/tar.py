"""A folder of published files as one tar, made as it is sent."""

import tarfile
from collections.abc import Iterator

from app.registry.manifest import PublishedFile
from app.storage import Storage


def stream(storage: Storage, folder: str, files: list[PublishedFile], *, mtime: int) -> Iterator[bytes]:
    """The bytes of a tar with the files under one folder; memory stays flat, and so does the answer to a repeat.

    Raises `Damaged` before the first byte, if a file is not there whole.
    """
    for file in files:
        storage.require(file.sha256, file.bytes)
    return _entries(storage, folder, files, mtime)


def _entries(storage: Storage, folder: str, files: list[PublishedFile], mtime: int) -> Iterator[bytes]:
    for file in files:
        entry = tarfile.TarInfo(f"{folder}/{file.name}")
        entry.size = file.bytes
        entry.mtime = mtime
        entry.mode = 0o644
        yield entry.tobuf(format=tarfile.PAX_FORMAT)
        yield from storage.read(file.sha256)
        yield b"\0" * (-file.bytes % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
