"""Where a group's federation lies until it is published: a folder that a killed process leaves.

The federation has a home of its own in there, with its own database and store, so that nothing of
its rounds, updates or prepared records is ever among what the home keeps, and all of it goes with
the folder. A group has one folder at a time; whoever works in it holds a lock on it, which the
operating system lets go when the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from intarsia_client.errors import InputError, StorageError
from intarsia_client.files import canonical_json, write_bytes

from intarsia_platform.home import Home

_NOTE = "federation.json"
_ATTEMPTS, _PAUSE = 10, 0.1


class FederationWorkspace:
    """One group's folder, locked; made by :meth:`FederationWorkspaces.opened`.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Keep the folder."""
        self.path = path

    @property
    def home(self) -> Home:
        """The federation's own home."""
        folder = self.path / "home"
        folder.mkdir(exist_ok=True)
        return Home(
            path=folder,
            database_url=f"sqlite:///{quote(str(folder / 'intarsia.db'))}",
            store_url=str(folder / "store"),
        )

    def clear(self) -> None:
        """Delete all that is in it; what is killed on the way is known as left over.

        Raises:
            StorageError: If something cannot be deleted.
        """
        try:
            (self.path / _NOTE).unlink(missing_ok=True)
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(self.path, error) from None


class FederationWorkspaces:
    """The folders of all groups that are being federated.

    Args:
        folder: The home's folder for them.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder; it is made when it is first wanted."""
        self._folder = folder

    @contextlib.contextmanager
    def opened(self, name: str, key: str) -> Iterator[FederationWorkspace]:
        """Open a group's folder, emptied unless it is of the very same work.

        Args:
            name: The group.
            key: Digest of all that decides the result.

        Yields:
            The folder, which stays; see :meth:`finish`.

        Raises:
            InputError: If another process works in it.
            StorageError: If it cannot be written.
        """
        path = self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]
        with _locked(path) as held:
            if not held:
                raise InputError(
                    f"group {name}", "is being federated by another process", "wait for its end"
                )
            work = FederationWorkspace(path)
            if _note(path) != {"group": name, "key": key}:
                work.clear()
                write_bytes(path / _NOTE, canonical_json({"group": name, "key": key}))
            yield work

    def finish(self, work: FederationWorkspace) -> None:
        """Delete a folder whose work is published or given up.

        Args:
            work: The folder, still open.

        Raises:
            StorageError: If it cannot be deleted; the next :meth:`sweep` tries again.
        """
        work.clear()
        with contextlib.suppress(OSError):
            work.path.rmdir()
            self._folder.rmdir()

    def sweep(self, published: Callable[[str], str | None]) -> None:
        """Delete folders of work that is published, and what killed deletions left.

        Args:
            published: From a group's name to the key of its published version; None where there is
                none.

        Raises:
            StorageError: If something cannot be deleted.
        """
        for path in sorted(self._folder.glob("*")):
            with _locked(path, attempts=1) as held:
                note = _note(path) if held else None
                if held and (note is None or published(note["group"]) == note["key"]):
                    self.finish(FederationWorkspace(path))

    def unfinished(self) -> tuple[str, ...]:
        """Names of groups whose federation was begun and not published, sorted."""
        notes = [_note(path) for path in self._folder.glob("*")]
        return tuple(sorted(note["group"] for note in notes if note is not None))

    def give_up(self, name: str) -> bool:
        """Delete what an unfinished federation of a group left.

        Args:
            name: The group.

        Returns:
            Whether there was any.

        Raises:
            InputError: If another process works in it.
            StorageError: If it cannot be deleted.
        """
        if name not in self.unfinished():
            return False
        with self.opened(name, "") as work:
            self.finish(work)
        return True


@contextlib.contextmanager
def _locked(path: Path, attempts: int = _ATTEMPTS) -> Iterator[bool]:
    """Hold a folder's lock, made where it is missing; gives whether nobody else has it."""
    descriptor = None
    try:
        for attempt in range(attempts):
            if attempt:
                time.sleep(_PAUSE)
            descriptor = _lock(path)
            if descriptor is not None:
                break
    except OSError as error:
        raise _storage_error(path, error) from None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it before may have deleted the folder.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _note(path: Path) -> dict[str, str] | None:
    """What a folder is for; None for one that is new, or whose deletion was killed."""
    try:
        note = json.loads((path / _NOTE).read_bytes())
        return {"group": str(note["group"]), "key": str(note["key"])}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _storage_error(path, error) from None
    except (ValueError, KeyError, TypeError):
        return None


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"federation's folder {path}", error.strerror or error, "check the home's folder"
    )
