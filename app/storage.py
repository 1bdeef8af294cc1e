"""Blobs and manifests: bytes by their digest, stored once, and small JSON documents that commit them.

A file is the blob `blobs/sha256/ab/abcd…`. A model is a manifest over blobs, written last: that is its commit point, on
a disk (temporary name, fsync, rename) and on S3 (which has no rename, but shows an object only when it is whole).
Keys are made by the service, never by a client.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec

from app import disks
from app.settings import get_settings

CHUNK = 1024 * 1024


class Blob(NamedTuple):
    """Stored bytes: their digest, which is also their address, and how many they are."""

    sha256: str
    bytes: int


class Damaged(Exception):
    """Stored bytes are not what their digest says, or are gone."""


class Incoming:
    """Bytes on their way to becoming a blob: written to a temporary file, hashed as they come."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def path(self) -> Path:
        """Where the bytes are until they are committed."""
        return Path(self._file.name)

    @property
    def sha256(self) -> str:
        """Digest of what has come so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Take some more bytes."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)

    def sync(self) -> None:
        """Make what was written outlive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())


class Storage:
    """One place under a URL: a folder, or a bucket and a prefix."""

    def __init__(self, url: str) -> None:
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._on_disk = url.startswith("file://")
        if self._on_disk:
            Path(self._root, "tmp").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A temporary file for a body that is still arriving; gone at the end, unless it was committed.

        Raises `NoSpace` where there is no room for it.
        """
        try:
            with tempfile.NamedTemporaryFile(dir=self._arriving, delete=False) as file:
                incoming = Incoming(cast("BinaryIO", file))
                try:
                    yield incoming
                finally:
                    incoming.path.unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, disks.NoSpace) or not disks.is_full(error, self._arriving):
                raise
            raise disks.NoSpace("storage") from error

    def free_bytes(self) -> int:
        """Of the disk that bytes arrive on: the storage's own, or in front of a bucket the system's temporary one."""
        return disks.free(self._arriving)

    def require_room(self, size: int) -> None:
        """Raises `NoSpace` unless so many bytes can be stored, with a margin. A bucket has room."""
        if self._on_disk:
            disks.require("storage", self._arriving, size)

    @property
    def _arriving(self) -> Path:
        return Path(self._root, "tmp") if self._on_disk else Path(tempfile.gettempdir())

    def forget_abandoned(self, age: timedelta) -> None:
        """Delete what was arriving on this disk when its process was killed: nothing was written to it for so long."""
        if not self._on_disk:
            return  # then it is in the system's own temporary folder
        for path in Path(self._root, "tmp").iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > age.total_seconds():
                    path.unlink()

    def commit(self, incoming: Incoming, *, anew: bool = False) -> Blob:
        """Make what has come a blob; the same bytes are kept once.

        `anew`: over the blob that is there, which was found damaged.
        """
        incoming.sync()
        blob = Blob(incoming.sha256, incoming.bytes)
        self._place(incoming.path, blob_key(blob.sha256), size=None if anew else blob.bytes)
        return blob

    def put_file(self, path: Path) -> Blob:
        """Store a file's bytes; the file stays where it is."""
        with path.open("rb") as source, self.incoming() as incoming:
            while chunk := source.read(CHUNK):
                incoming.write(chunk)
            return self.commit(incoming)

    def put_bytes(self, content: bytes) -> Blob:
        """Store a few bytes that are in memory already."""
        with self.incoming() as incoming:
            incoming.write(content)
            return self.commit(incoming)

    def read(self, sha256: str, *, size: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob, in chunks, verified as they are read.

        Raises `Damaged` before the first chunk is asked for, where there is none, or none of that many bytes; and
        before the last one where they are not what the digest says: damaged bytes never arrive whole.
        """
        if size is not None:
            self.require(sha256, size)
        return _verified(self.open(sha256), sha256)

    def open(self, sha256: str) -> BinaryIO:
        """A blob as a file that can be read anywhere in it. Raises `Damaged` where there is none."""
        try:
            return cast("BinaryIO", self._files.open(self._path(blob_key(sha256)), "rb"))
        except FileNotFoundError as error:
            raise Damaged(f"blob {sha256} is gone") from error

    def fetch(self, sha256: str, target: Path, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Copy a blob to a local file, verified on arrival. Raises `Damaged`.

        `meanwhile` is called at each chunk; what it raises ends the copy.
        """
        with target.open("wb") as file:
            for chunk in self.read(sha256):
                meanwhile()
                file.write(chunk)

    def has(self, sha256: str, size: int) -> bool:
        """Whether the blob is there, with that many bytes."""
        try:
            return bool(self._files.size(self._path(blob_key(sha256))) == size)
        except FileNotFoundError:
            return False

    def require(self, sha256: str, size: int) -> None:
        """Raises `Damaged` unless the blob is there, with that many bytes."""
        if not self.has(sha256, size):
            raise Damaged(f"blob {sha256} is gone, or has lost bytes")

    def problem(self, sha256: str, size: int) -> str | None:
        """What is wrong with a blob, all of which is read; None where nothing is."""
        try:
            for _ in self.read(sha256, size=size):
                pass
        except Damaged as error:
            return str(error)
        return None

    def delete(self, sha256: str) -> None:
        """Forget a blob; fine if it is gone already."""
        try:
            self._files.rm_file(self._path(blob_key(sha256)))
        except FileNotFoundError:
            return

    def write_manifest(self, key: str, manifest: dict[str, Any]) -> str:
        """Write a JSON document at its key, whole or not at all; returns its sha256."""
        content = json.dumps(manifest, indent=2, sort_keys=True).encode()
        with self.incoming() as incoming:
            incoming.write(content)
            incoming.sync()
            self._place(incoming.path, key, size=None)
        return hashlib.sha256(content).hexdigest()

    def read_manifest(self, key: str, *, sha256: str | None = None) -> dict[str, Any] | None:
        """The document at a key, or None. Raises `Damaged` where it is not the one of that digest."""
        try:
            with self._files.open(self._path(key), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise Damaged(f"manifest {key} has other bytes than its digest says")
        document: dict[str, Any] = json.loads(content)
        return document

    def delete_manifest(self, key: str) -> None:
        """Forget a document; fine if it is gone already."""
        try:
            self._files.rm_file(self._path(key))
        except FileNotFoundError:
            return

    def manifests(self, prefix: str) -> list[str]:
        """Keys of the manifests under a prefix, in the order of their names."""
        try:
            found = self._files.ls(self._path(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted(f"{prefix}/{str(path).rsplit('/', 1)[-1]}" for path in found if str(path).endswith(".json"))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _place(self, source: Path, key: str, *, size: int | None) -> None:
        """Move a temporary file to its key; `size` set means: the same key has the same bytes."""
        target = self._path(key)
        if size is not None and self._files.exists(target) and self._files.size(target) == size:
            return
        if self._on_disk:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            _sync_folder(Path(target).parent)
        else:
            self._files.put_file(str(source), target)


def _verified(file: BinaryIO, sha256: str) -> Iterator[bytes]:
    digest, held = hashlib.sha256(), b""
    with file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if held:
                yield held
            held = chunk
    if digest.hexdigest() != sha256:
        raise Damaged(f"blob {sha256} has other bytes than its digest says")
    if held:
        yield held


def blob_key(sha256: str) -> str:
    """Where a blob lies."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache
def get_storage() -> Storage:
    """The storage of this process's settings."""
    return Storage(get_settings().storage)
