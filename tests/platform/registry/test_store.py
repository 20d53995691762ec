"""The content-addressed store: one contract for a folder and for any other fsspec file system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_client.files import bytes_digest
from intarsia_platform.registry.store import ContentStore

HELLO = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
"""SHA-256 of ``hello``, as ``sha256sum`` prints it."""

HELLO_NAME = f"sha256/2c/{HELLO.removeprefix('sha256:')}"


@pytest.fixture(params=["folder", "file-url", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ContentStore:
    place = {
        "folder": str(tmp_path / "a store"),
        "file-url": f"file://{tmp_path}/store",
        "memory": f"memory://{uuid.uuid4().hex}/store",
    }[request.param]
    return ContentStore(place)


def raw(store: ContentStore) -> tuple[Any, str]:
    """The file system under a store and its root there, to look and to tamper."""
    return fsspec.core.url_to_fs(store.url)


def all_files(store: ContentStore) -> list[str]:
    filesystem, root = raw(store)
    return [name.removeprefix(f"{root}/") for name in filesystem.find(root)]


@pytest.fixture(autouse=True)
def memory_is_forgotten() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_bytes_come_back_by_their_digest(store: ContentStore, tmp_path: Path) -> None:
    assert not store.has(HELLO)
    assert store.put(b"hello") == HELLO
    assert store.get(HELLO) == b"hello"
    assert store.has(HELLO)
    assert store.size(HELLO) == 5
    store.get_to_file(HELLO, tmp_path / "out" / "hello")
    assert (tmp_path / "out" / "hello").read_bytes() == b"hello"


def test_the_layout(store: ContentStore) -> None:
    store.put(b"hello")
    assert all_files(store) == [HELLO_NAME]


def test_views_and_nothing_are_content_too(store: ContentStore) -> None:
    digest = store.put(memoryview(bytearray(b"hello!"))[:5])
    assert digest == HELLO
    assert store.get(store.put(b"")) == b""


def test_a_file_is_kept_as_its_bytes_are(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    assert store.put_file(tmp_path / "hello") == HELLO
    assert store.get(HELLO) == b"hello"


def test_putting_again_writes_nothing(store: ContentStore, tmp_path: Path) -> None:
    store.put(b"hello")
    filesystem, root = raw(store)
    before = filesystem.modified(f"{root}/{HELLO_NAME}")
    store.put(b"hello")
    (tmp_path / "hello").write_bytes(b"hello")
    store.put_file(tmp_path / "hello")
    assert filesystem.modified(f"{root}/{HELLO_NAME}") == before
    assert all_files(store) == [HELLO_NAME]


def test_digests_are_listed_in_order_and_strangers_passed_over(store: ContentStore) -> None:
    assert list(store.digests()) == []
    digests = [store.put(bytes([number])) for number in range(20)]
    filesystem, root = raw(store)
    for stranger in ("sha256/2c/README", f"sha256/ff/{HELLO[7:]}", f"{HELLO_NAME}.tmp"):
        filesystem.makedirs(f"{root}/{stranger.rpartition('/')[0]}", exist_ok=True)
        filesystem.pipe_file(f"{root}/{stranger}", b"")
    assert list(store.digests()) == sorted(digests)


def test_deleting_takes_what_a_killed_writer_left_too(store: ContentStore) -> None:
    store.put(b"hello")
    other = store.put(b"other")
    filesystem, root = raw(store)
    folder, _, name = HELLO_NAME.rpartition("/")
    filesystem.pipe_file(f"{root}/{folder}/.{name}.x1", b"hel")
    assert store.delete(HELLO)
    assert not store.delete(HELLO)
    assert not store.has(HELLO)
    assert list(store.digests()) == [other]
    assert len(all_files(store)) == 1


@pytest.mark.parametrize("damage", [b"hell", b"hellp", b"", b"hello!"])
def test_damage_is_named(store: ContentStore, tmp_path: Path, damage: bytes) -> None:
    store.put(b"hello")
    filesystem, root = raw(store)
    filesystem.pipe_file(f"{root}/{HELLO_NAME}", damage)
    with pytest.raises(IntegrityError, match=HELLO) as caught:
        store.get(HELLO)
    assert "\n" not in str(caught.value)
    (tmp_path / "out").write_bytes(b"before")
    with pytest.raises(IntegrityError, match=HELLO):
        store.get_to_file(HELLO, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_putting_mends_a_truncated_blob(store: ContentStore, tmp_path: Path) -> None:
    filesystem, root = raw(store)
    for mend in (store.put, lambda data: store.put_file(tmp_path / "hello")):
        store.put(b"hello")
        filesystem.pipe_file(f"{root}/{HELLO_NAME}", b"hel")
        (tmp_path / "hello").write_bytes(b"hello")
        mend(b"hello")
        assert store.get(HELLO) == b"hello"


def test_what_is_not_here_is_named(store: ContentStore, tmp_path: Path) -> None:
    for ask in (store.get, store.size, lambda d: store.get_to_file(d, tmp_path / "out")):
        with pytest.raises(IntegrityError, match=rf"{HELLO}: is not in"):
            ask(HELLO)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc", HELLO.upper(), HELLO[7:], f"{HELLO}0"]
)
def test_a_digest_is_not_a_path(store: ContentStore, digest: str) -> None:
    for ask in (store.get, store.has, store.size, store.delete):
        with pytest.raises(InputError, match="digest"):
            ask(digest)


def test_a_missing_source_is_bad_input(store: ContentStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        store.put_file(tmp_path / "none")


@settings(max_examples=60, deadline=None)
@given(blobs=st.lists(st.binary(max_size=200)))
def test_any_bytes_come_back(blobs: list[bytes]) -> None:
    store = ContentStore(f"memory://{uuid.uuid4().hex}")
    digests = [store.put(blob) for blob in blobs]
    assert digests == [bytes_digest(blob) for blob in blobs]
    assert [store.get(digest) for digest in digests] == blobs
    assert list(store.digests()) == sorted(set(digests))


def test_files_are_streamed(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as stream:
        for _ in range(32):
            stream.write(os.urandom(1 << 20))
    store = ContentStore(str(tmp_path / "store"))
    tracemalloc.start()
    try:
        digest = store.put_file(tmp_path / "large")
        store.get_to_file(digest, tmp_path / "copy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "large").read_bytes()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ContentStore(str(tmp_path / "store"))
    (tmp_path / "hello").write_bytes(b"hello")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (lambda: store.put(b"hello"), lambda: store.put_file(tmp_path / "hello")):
            with pytest.raises(StorageError, match="No space left on device; free space"):
                write()
        assert all_files(store) == []
    assert store.put(b"hello") == HELLO


class FullFileSystem(MemoryFileSystem):
    """A remote place with room for three bytes a file, or none to move one."""

    protocol = "full"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failing = "write"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("full://"))

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        stream = super()._open(path, mode, **settings)
        if mode == "wb" and self.failing == "write":
            written = stream.write

            def write(data: bytes) -> int:
                written(bytes(data)[:3])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            stream.write = write
        return stream

    def cp_file(self, path1: str, path2: str, **settings: Any) -> None:
        if self.failing == "move":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        super().cp_file(path1, path2, **settings)


@pytest.mark.parametrize("failing", ["write", "move"])
def test_a_full_remote_place_leaves_nothing(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    store = ContentStore("full://store")
    monkeypatch.setattr(FullFileSystem, "failing", failing)
    with pytest.raises(StorageError, match=r"writing sha256:2cf.*free space"):
        store.put(b"hello")
    assert FullFileSystem.store == {}
    monkeypatch.setattr(FullFileSystem, "failing", "nothing")
    assert store.put(b"hello") == HELLO
    FullFileSystem.store.clear()


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Not a directory"):
        ContentStore(str(tmp_path / "file" / "store")).put(b"hello")


def test_an_unknown_kind_of_place_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"store URL: nosuch://place"):
        ContentStore("nosuch://place")


def test_a_writer_killed_before_the_rename_leaves_no_blob(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from intarsia_platform.registry.store import ContentStore\n"
        "def kill(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.replace = kill\n"
        "ContentStore(sys.argv[1]).put(b'hello')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], env=environment, check=False
    )
    assert done.returncode < 0
    store = ContentStore(str(tmp_path / "store"))
    assert list(store.digests()) == []
    assert not store.has(HELLO)
    assert len(all_files(store)) == 1
    assert store.put(b"hello") == HELLO
    assert store.delete(HELLO)
    assert all_files(store) == []
