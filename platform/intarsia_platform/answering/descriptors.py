"""Descriptors of the adapters that a caller may use, read from the store and kept for a while."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from intarsia_client.errors import IntegrityError
from intarsia_continual.descriptors.base import Descriptor
from intarsia_continual.descriptors.catalog import read_descriptor

from intarsia_platform.registry.store import ContentStore


class DescriptorShelf:
    """Descriptors by the digest of their bytes. Safe for several threads.

    Formal guarantee: what :meth:`read` gives depends on what it is asked for alone, whatever was
    asked for before, since a descriptor's digest is its content.

    Args:
        store: Where they lie.
        capacity_bytes: Most memory for those that are kept; the longest unused go first.
    """

    def __init__(self, store: ContentStore, capacity_bytes: int) -> None:
        """Keep the store; nothing is read."""
        self._store = store
        self._capacity = capacity_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Descriptor] = OrderedDict()
        self._held = 0
        self._cleared = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return self._held

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the descriptors that are kept."""
        with self._lock:
            return tuple(self._kept)

    def read(
        self, places: Mapping[str, str], still_named: Callable[[str, str], bool]
    ) -> dict[str, Descriptor]:
        """Read the descriptors of some adapters, and of no others.

        Args:
            places: From each adapter's digest to its descriptor's.
            still_named: Whether an adapter's descriptor is still that one; asked where its bytes
                are not there.

        Returns:
            From each adapter's digest to its descriptor, in the order of the digests. An adapter
            that was changed or removed meanwhile is left out.

        Raises:
            IntegrityError: If one is damaged, or missing though its group is there.
        """
        found = {}
        for adapter in sorted(places):
            try:
                found[adapter] = self._one(places[adapter])
            except IntegrityError:
                if still_named(adapter, places[adapter]):
                    raise
        return found

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._kept.clear()
            self._held = 0
            self._cleared += 1

    def _one(self, digest: str) -> Descriptor:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
            cleared = self._cleared
        found = read_descriptor(self._store.get(digest))
        with self._lock:
            # One that was being read while all were forgotten may be of those that left.
            if digest not in self._kept and cleared == self._cleared:
                self._kept[digest] = found
                self._held += _size(found)
            while self._held > self._capacity and len(self._kept) > 1:
                self._held -= _size(self._kept.popitem(last=False)[1])
        return found


def _size(descriptor: Descriptor) -> int:
    return sum(array.nbytes for array in descriptor.arrays.values())
