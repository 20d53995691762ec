"""Adapters in memory: read when they are first wanted, kept while they are used, let go after.

Nothing is read or kept for an adapter that is only registered: hundreds cost nothing until a
request wants one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from intarsia_client.peft_files import EncodedAdapter

from intarsia_platform.access.refusal import refused
from intarsia_platform.serving.banked_adapter import MAX_RANK, BankedAdapter, decode_for
from intarsia_platform.serving.capacities import BANK_BYTES
from intarsia_platform.serving.linear_sites import base_shapes
from intarsia_platform.serving.requests import EngineBusy

_LOGGER = logging.getLogger(__name__)


class AdapterLease:
    """Adapters that stay in memory until the lease is closed. Also a context manager.

    Args:
        adapters: In the order in which they were asked for.
        release: Called once, when it is closed.
    """

    def __init__(self, adapters: tuple[BankedAdapter, ...], release: Callable[[], None]) -> None:
        self._adapters = adapters
        self._release: Callable[[], None] | None = release

    @property
    def adapters(self) -> tuple[BankedAdapter, ...]:
        """The adapters; none once it is closed."""
        return self._adapters

    def close(self) -> None:
        """Let the adapters go; again does nothing."""
        release, self._release, self._adapters = self._release, None, ()
        if release is not None:
            release()

    def __enter__(self) -> tuple[BankedAdapter, ...]:
        """The adapters."""
        return self._adapters

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


@dataclass(kw_only=True, eq=False)
class _Entry:
    digest: str
    adapter: BankedAdapter | None = None
    leases: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class AdapterBank:
    """The adapters of one base that are in memory. Safe for several threads.

    Args:
        base: The base model that they must fit.
        read: Reads an adapter's two files by digest; it must check the bytes against that digest,
            as the registry does.
        capacity_bytes: Most memory for adapters. Those in no lease leave in the order in which
            they were last used.
        max_rank: The largest rank that is taken.
    """

    def __init__(
        self,
        base: BaseModel,
        read: Callable[[str], EncodedAdapter],
        *,
        capacity_bytes: int = BANK_BYTES,
        max_rank: int = MAX_RANK,
    ) -> None:
        """Look at the base's shapes; nothing is read."""
        self._shapes = base_shapes(base, max_rank=max_rank)
        self._read = read
        self._capacity = capacity_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._dropped: set[str] = set()
        self._held = 0
        self._watchers: list[Callable[[str], None]] = []

    @property
    def size(self) -> int:
        """Bytes of the adapters in memory, dropped ones that are still leased included."""
        with self._lock:
            return self._held

    @property
    def digests(self) -> tuple[str, ...]:
        """The adapters in memory that can be leased, the longest unused first."""
        with self._lock:
            return tuple(entry.digest for entry in self._entries.values() if entry.adapter)

    def on_drop(self, forget: Callable[[str], None]) -> None:
        """Ask to be told of every adapter that is dropped, to drop copies of it.

        Args:
            forget: Called with the digest, in the thread that drops it.
        """
        self._watchers.append(forget)

    def lease(self, digests: Iterable[str]) -> AdapterLease:
        """Keep adapters in memory, read first where they are not there.

        Args:
            digests: The adapters; whoever asks has been authorised to use them.

        Returns:
            The lease, to be closed or used as a context manager that gives the adapters.

        Raises:
            AccessError: If one was dropped, in the words for unknown ones.
            EngineBusy: If they have no room beside those in other leases; the same words always,
                since how much others hold is not the caller's to know. The log has the figures.
            InputError: If one does not fit the base, is not finite, or they would not fit into
                the bank alone.
            IntegrityError: If one's files are damaged.
        """
        wanted = list(digests)
        held: list[_Entry] = []
        try:
            for digest in wanted:
                held.append(self._hold(digest))
            adapters = tuple(self._loaded(entry, held) for entry in held)
        except BaseException:
            self._release(held)
            raise
        return AdapterLease(adapters, lambda: self._release(held))

    def drop(self, digest: str) -> None:
        """Forget an adapter: no new lease gets it, and its memory goes with the last open lease.

        Args:
            digest: The adapter, whether it is in memory or not.
        """
        with self._lock:
            self._dropped.add(digest)
            entry = self._entries.pop(digest, None)
            if entry is not None and not entry.leases:
                self._purge(entry)
        for forget in tuple(self._watchers):
            forget(digest)

    def restore(self, digest: str) -> None:
        """Let an adapter that was dropped be leased again, since it was admitted again.

        Args:
            digest: The adapter.
        """
        with self._lock:
            self._dropped.discard(digest)

    def _hold(self, digest: str) -> _Entry:
        with self._lock:
            if digest in self._dropped:
                raise refused("adapter", digest)
            entry = self._entries.setdefault(digest, _Entry(digest=digest))
            self._entries.move_to_end(digest)
            entry.leases += 1
            return entry

    def _loaded(self, entry: _Entry, held: Sequence[_Entry]) -> BankedAdapter:
        # One thread reads; others that want the same adapter wait, all others go on.
        with entry.loading:
            if entry.adapter is None:
                adapter = decode_for(self._shapes, entry.digest, self._read(entry.digest))
                with self._lock:
                    if entry.digest in self._dropped:
                        raise refused("adapter", entry.digest)
                    self._make_room(adapter.size, held)
                    entry.adapter = adapter
                    self._held += adapter.size
            return entry.adapter

    def _make_room(self, size: int, held: Sequence[_Entry]) -> None:
        """Make room for one more adapter of a lease that has some already."""
        own = {entry.digest: entry.adapter.size for entry in held if entry.adapter is not None}
        if sum(own.values()) + size > self._capacity:
            raise InputError(
                "adapters of this request",
                "do not fit into memory together",
                "name fewer, or ask the steward to raise the bank's capacity",
            )
        free = [entry for entry in self._entries.values() if not entry.leases]
        for entry in free:
            if self._held + size <= self._capacity:
                return
            del self._entries[entry.digest]
            self._purge(entry)
        if self._held + size > self._capacity:
            _LOGGER.warning(
                "the bank is full: %d bytes leased, %d wanted, %d allowed",
                self._held,
                size,
                self._capacity,
            )
            raise EngineBusy("adapters", "have no room now", "try again in a moment")

    def _release(self, held: list[_Entry]) -> None:
        with self._lock:
            for entry in held:
                entry.leases -= 1
                gone = self._entries.get(entry.digest) is not entry
                if not entry.leases and (gone or entry.adapter is None):
                    if not gone:
                        del self._entries[entry.digest]
                    self._purge(entry)

    def _purge(self, entry: _Entry) -> None:
        if entry.adapter is not None:
            self._held -= entry.adapter.size
            entry.adapter = None
