"""Files that are either whole or absent, and digests that name content.

Everything Intarsia leaves on disk goes through here: written under a temporary name in the same
folder, flushed to the device, then renamed. A reader sees the old file or the new one, never half.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from intarsia_client.errors import InputError, StorageError


def canonical_json(value: object) -> bytes:
    """Encode a JSON value so that equal values give equal bytes.

    Args:
        value: Anything ``json`` can encode; NaN and infinities are refused.

    Returns:
        UTF-8 bytes with sorted keys and no spaces.

    Raises:
        ValueError: If the value holds a float that is not finite.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def bytes_digest(*parts: bytes | memoryview) -> str:
    """Digest of the concatenation of ``parts``.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits.
    """
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return f"sha256:{hasher.hexdigest()}"


def file_digest(path: Path) -> str:
    """Digest of a file's bytes, read in pieces so that memory stays flat.

    Args:
        path: The file.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def files_digest(digests: Mapping[str, str]) -> str:
    """One digest for several named contents, independent of their order.

    Args:
        digests: From each name to its content's digest.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits over the canonical JSON of ``digests``.
    """
    return bytes_digest(canonical_json(dict(digests)))


def _beside(path: Path) -> Path:
    """A new name in the same folder; what is made under it gets the process's own permissions."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"writing {path}", error.strerror or error, "free space or choose a place that is writable"
    )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it into place when the block succeeds.

    Args:
        path: Where the file shall be; its folder is made where it is missing.

    Yields:
        The temporary path, an empty file that the block fills.

    Raises:
        StorageError: If the disk is full or the place cannot be written; nothing is left behind.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        _flush_directory(path.parent)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or none of it.

    Args:
        path: Where the file shall be.
        data: All of its bytes.

    Raises:
        StorageError: As :func:`atomic_file`.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` and move it into place when the block succeeds.

    Args:
        path: Where the folder shall be; it must not exist yet, or be empty.

    Yields:
        The temporary folder.

    Raises:
        InputError: If ``path`` exists and holds something.
        StorageError: If the place cannot be written; nothing is left behind.
    """
    temporary = _beside(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                "output folder", path, "choose a folder that does not exist or is empty"
            )
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
        temporary.replace(path)
        _flush_directory(path.parent)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
