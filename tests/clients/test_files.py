"""Files are whole or absent, whatever happens while they are written."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError, StorageError
from intarsia_client.files import (
    atomic_directory,
    atomic_file,
    bytes_digest,
    canonical_json,
    file_digest,
    files_digest,
    write_bytes,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\u00e4"), inner),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.text("abc\u00e4"), values))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_canonical_json_is_compact_utf8_and_refuses_what_json_has_not() -> None:
    assert (
        canonical_json({"b": [1, 2.5, None], "a": "\u00e4"}) == b'{"a":"\xc3\xa4","b":[1,2.5,null]}'
    )
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range"):
            canonical_json({"x": value})


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50)))
def test_digests_are_sha256_of_the_parts_in_order(parts: list[bytes]) -> None:
    assert bytes_digest(*parts) == f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "x") == bytes_digest(b"abc" * 100_000)
    assert files_digest({"a": "1", "b": "2"}) == files_digest({"b": "2", "a": "1"})
    assert files_digest({"a": "1", "b": "2"}) != files_digest({"a": "2", "b": "1"})


def test_a_file_is_written_with_its_folders_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for data in (b"old and longer", memoryview(b"new")):
        write_bytes(path, data)
        assert path.read_bytes() == bytes(data)
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_bytes(b"x")
        assert not path.exists()
    assert (path / "inner" / "file").read_bytes() == b"x"
    other = tmp_path / "other"
    with pytest.raises(ValueError, match="stop"), atomic_directory(other) as temporary:
        (temporary / "file").write_bytes(b"x")
        raise ValueError("stop")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "deep"]


def test_a_folder_that_holds_something_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for taken in ("full", "file"):
        with pytest.raises(InputError, match="output folder"), atomic_directory(tmp_path / taken):
            pass
    with atomic_directory(tmp_path / "empty") as temporary:
        (temporary / "file").write_text("y")
    assert (tmp_path / "full" / "precious").read_text() == "x"
    assert (tmp_path / "empty" / "file").read_text() == "y"


@pytest.fixture(params=["write", "fsync", "replace"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A disk that is full when bytes are written, flushed, or the name is changed."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if request.param == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif request.param == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        opened: Callable[..., Any] = Path.open

        def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return open("/dev/full", mode, buffering=0) if mode == "wb" else opened(path, mode)  # noqa: PTH123

        monkeypatch.setattr(Path, "open", full)
    yield str(request.param)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, full_disk: str) -> None:
    before = tmp_path / "before"
    before.mkdir()
    with pytest.raises(StorageError, match="No space left on device; free space"):
        write_bytes(tmp_path / "file", b"x" * 100_000)
    with (
        pytest.raises(StorageError, match="No space left on device; free space"),
        atomic_directory(tmp_path / "folder") as temporary,
        (temporary / "file").open("wb") as stream,
    ):
        stream.write(b"x")
    assert list(tmp_path.iterdir()) == [before]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "file", b"old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StorageError):
            write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_is_no_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="choose a place that is writable"):
        write_bytes(tmp_path / "file" / "inside", b"x")
    with (
        pytest.raises(StorageError, match="choose a place that is writable"),
        atomic_directory(tmp_path / "file" / "inside"),
    ):
        pass


WRITER = """
import sys
from pathlib import Path
from intarsia_client.files import write_bytes
path = Path(sys.argv[1])
print("ready", flush=True)
for turn in range(1_000_000):
    write_bytes(path, bytes([turn % 251]) * 300_000)
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.05])
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "file"
    write_bytes(path, bytes(300_000))
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
    data = path.read_bytes()
    assert len(data) == 300_000
    assert len(set(data)) == 1


def test_a_strict_umask_keeps_records_private(tmp_path: Path) -> None:
    """A site that runs under umask 077 expects that nobody else reads its records."""
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "file", b"a site's records")
        with atomic_directory(tmp_path / "folder") as temporary:
            (temporary / "file").write_bytes(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o077 == 0
    assert (tmp_path / "folder").stat().st_mode & 0o077 == 0


def test_a_name_too_long_for_the_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_bytes(tmp_path / ("x" * 300), b"x")
    with pytest.raises(StorageError), atomic_directory(tmp_path / ("x" * 300)):
        pass
