"""A content-addressed store: bytes go in, their digest comes out, and is checked on the way back.

The layout is ``sha256/ab/abcdef…`` below a folder or any fsspec URL (``s3://bucket/prefix``,
``memory://``). A file appears under its final name whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem
from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_client.files import atomic_file, bytes_digest, file_digest

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_PIECE = 1 << 20


class ContentStore:
    """Blobs by digest.

    Formal guarantee: what :meth:`get` returns hashes to the digest that was asked for; a blob that
    :meth:`put` returned from is on the device (local folders) or acknowledged by the file system
    that the URL names (others).

    Args:
        url: A local folder or an fsspec URL; made where it is missing.

    Raises:
        InputError: If no file system of that kind is installed.
        StorageError: If it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        """Open the place."""
        self.url = url
        try:
            filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError("store URL", url, f"install its fsspec driver ({error})") from None
        except OSError as error:
            raise _storage_error(f"store {url}", error) from error
        self._files: _Files = (
            _LocalFiles(Path(root))
            if isinstance(filesystem, LocalFileSystem)
            else _RemoteFiles(filesystem, root.rstrip("/"))
        )

    def put(self, data: bytes | memoryview) -> str:
        """Keep bytes.

        Args:
            data: The bytes.

        Returns:
            Their digest, ``"sha256:…"``.

        Raises:
            StorageError: If there is no space or the place cannot be written; nothing is left.
        """
        digest = bytes_digest(data)
        name = _name(digest)
        with self._storage("writing", digest):
            # A size that differs is a damaged blob, which these good bytes replace.
            if self._files.size(name) != memoryview(data).nbytes:
                self._files.write(name, [data])
        return digest

    def put_file(self, path: Path) -> str:
        """Keep a file's bytes, read in pieces so that memory stays flat.

        Args:
            path: The file.

        Returns:
            Their digest.

        Raises:
            InputError: If the file cannot be read.
            IntegrityError: If it changes while it is read.
            StorageError: As :meth:`put`.
        """
        try:
            digest = file_digest(path)
            size = path.stat().st_size
        except OSError as error:
            raise InputError("file", path, f"name a readable one ({error.strerror})") from None
        name = _name(digest)
        with self._storage("writing", digest), path.open("rb") as stream:
            if self._files.size(name) != size:
                pieces = iter(lambda: stream.read(_PIECE), b"")
                self._files.write(name, self._checked(digest, pieces))
        return digest

    def get(self, digest: str) -> bytes:
        """Bytes by digest.

        Args:
            digest: ``"sha256:…"``.

        Returns:
            The bytes, verified.

        Raises:
            IntegrityError: If the blob is missing, truncated or altered.
            StorageError: If it cannot be read.
        """
        return b"".join(self._pieces(digest))

    def get_to_file(self, digest: str, path: Path) -> None:
        """Write a blob to a file, whole and verified or not at all.

        Args:
            digest: ``"sha256:…"``.
            path: The file to make or replace.

        Raises:
            IntegrityError: As :meth:`get`; ``path`` is left as it was.
            StorageError: If it cannot be read or ``path`` cannot be written.
        """
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            for piece in self._pieces(digest):
                stream.write(piece)

    def as_file(self, digest: str, folder: Path) -> Path:
        """A blob as a file that can be read piece by piece, with flat memory.

        Args:
            digest: ``"sha256:…"``.
            folder: Where the blob is put if the store is no folder of this machine.

        Returns:
            The blob's own file, or its copy below ``folder``; verified, and not to be changed.

        Raises:
            IntegrityError: As :meth:`get`.
            StorageError: If it cannot be read, or ``folder`` cannot be written.
        """
        path = self._files.path(_name(digest))
        if path is None:
            path = folder / _name(digest)
            if not path.exists():
                self.get_to_file(digest, path)
            return path
        for _ in self._pieces(digest):
            pass
        return path

    def has(self, digest: str) -> bool:
        """Whether there is a blob of that name; its bytes are not read."""
        with self._storage("reading", digest):
            return self._files.size(_name(digest)) is not None

    def size(self, digest: str) -> int:
        """Bytes of a blob.

        Args:
            digest: ``"sha256:…"``.

        Returns:
            Its size as stored.

        Raises:
            IntegrityError: If it is not here.
        """
        with self._storage("reading", digest):
            size = self._files.size(_name(digest))
        if size is None:
            raise self._missing(digest)
        return size

    def delete(self, digest: str) -> bool:
        """Remove a blob, and what a killed writer may have left of it.

        Args:
            digest: ``"sha256:…"``.

        Returns:
            Whether it was here.

        Raises:
            StorageError: If it cannot be removed.
        """
        with self._storage("deleting", digest):
            return self._files.delete(_name(digest))

    def digests(self) -> Iterator[str]:
        """Digests of all blobs, sorted; files of other names are passed over."""
        with self._storage("listing", "sha256"):
            names = sorted(self._files.names())
        for name in names:
            if match := _NAME.fullmatch(name):
                yield f"sha256:{match[2]}"

    def _pieces(self, digest: str) -> Iterator[bytes]:
        name = _name(digest)
        with self._storage("reading", digest):
            try:
                yield from self._checked(digest, self._files.read(name))
            except FileNotFoundError:
                raise self._missing(digest) from None

    def _checked(self, digest: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        for piece in pieces:
            hasher.update(piece)
            yield piece
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise IntegrityError(
                f"content of {digest} in {self.url}",
                f"hashes to sha256:{hasher.hexdigest()}",
                "restore it from a backup or make it again",
            )

    def _missing(self, digest: str) -> IntegrityError:
        return IntegrityError(
            f"content of {digest}",
            f"is not in {self.url}",
            "name the store that holds it, or make it again",
        )

    @contextlib.contextmanager
    def _storage(self, doing: str, digest: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _storage_error(f"{doing} {digest} in {self.url}", error) from error


class _Files(Protocol):
    """The file layer: names relative to the store's root, ``OSError`` for whatever goes wrong."""

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None: ...
    def read(self, name: str) -> Iterator[bytes]: ...
    def size(self, name: str) -> int | None: ...
    def delete(self, name: str) -> bool: ...
    def names(self) -> Iterable[str]: ...
    def path(self, name: str) -> Path | None: ...


class _LocalFiles:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        with atomic_file(self._root / name) as temporary, temporary.open("wb") as stream:
            for piece in pieces:
                stream.write(piece)

    def read(self, name: str) -> Iterator[bytes]:
        with (self._root / name).open("rb") as stream:
            yield from iter(lambda: stream.read(_PIECE), b"")

    def size(self, name: str) -> int | None:
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> bool:
        path = self._root / name
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            return True
        return False

    def names(self) -> Iterable[str]:
        return [path.relative_to(self._root).as_posix() for path in self._root.glob("sha256/*/*")]

    def path(self, name: str) -> Path | None:
        return self._root / name


class _RemoteFiles:
    """Any other fsspec file system: written under a temporary name, then moved."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = root

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        temporary = f"{folder}/.{last}.{uuid.uuid4().hex}"
        self._filesystem.makedirs(folder, exist_ok=True)
        try:
            with self._filesystem.open(temporary, "wb") as stream:
                for piece in pieces:
                    stream.write(piece)
            self._filesystem.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._filesystem.rm_file(temporary)
            raise

    def read(self, name: str) -> Iterator[bytes]:
        with self._filesystem.open(self._path(name), "rb") as stream:
            yield from iter(lambda: stream.read(_PIECE), b"")

    def size(self, name: str) -> int | None:
        try:
            return int(self._filesystem.size(self._path(name)))
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> bool:
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        for leftover in self._filesystem.glob(f"{folder}/.{last}.*"):
            self._filesystem.rm_file(leftover)
        if not self._filesystem.exists(path):
            return False
        self._filesystem.rm_file(path)
        return True

    def names(self) -> Iterable[str]:
        prefix = f"{self._root}/"
        found = self._filesystem.find(f"{self._root}/sha256")
        return [str(path).removeprefix(prefix) for path in found]

    def path(self, name: str) -> Path | None:
        return None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def is_digest(text: str) -> bool:
    """Whether a text is ``"sha256:"`` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def _name(digest: str) -> str:
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InputError("digest", digest, "write sha256: and 64 hexadecimal digits")
    return f"sha256/{match[1][:2]}/{match[1]}"


def _storage_error(thing: str, error: OSError) -> StorageError:
    words = error.strerror or str(error) or type(error).__name__
    return StorageError(thing, words, "free space or choose a place that is reachable and writable")
