"""Large records that many messages carry, stored once in Ray and fetched once by a worker.

A round's messages mostly carry the same arrays: the very same objects, as a strategy builds them
once. What at least two messages of a push share and is larger than 64 KiB goes into Ray's
object store, as a whole record or as a single array of otherwise different records, and the
messages refer to it by number.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

Record: TypeAlias = ArrayRecord | MetricRecord | ConfigRecord

_SHARED_BYTES = 64 * 2**10
_RECORDS_CACHED = 8
_FETCH_SECONDS = 600.0


@dataclass(frozen=True)
class Reference:
    """Stands for a record or an array that lies in Ray's object store.

    Attributes:
        key: Its number among the broadcasts of a grid.
    """

    key: int


SplitRecord: TypeAlias = dict[str, Array | Reference]
"""An array record of which some arrays are elsewhere."""


@dataclass(frozen=True, kw_only=True)
class PackedContent:
    """A message's content as it travels to a worker.

    Attributes:
        records: The records by name, whole, split, or referred to.
        keys: The broadcasts that they refer to.
        size: Bytes of arrays and byte strings that travel with the message itself.
    """

    records: dict[str, Record | SplitRecord | Reference]
    keys: frozenset[int]
    size: int


class Broadcasts:
    """The sender's side: what lies in Ray's object store, and for how many messages yet.

    Attributes:
        stored: How many objects were put there since the start.
    """

    def __init__(self) -> None:
        """Start with nothing stored."""
        self.stored = 0
        self._references: dict[int, ray.ObjectRef] = {}
        self._uses: Counter[int] = Counter()

    def pack(self, messages: Mapping[str, Message]) -> dict[str, PackedContent]:
        """Pack the contents of messages that are sent together.

        Args:
            messages: The messages by id.

        Returns:
            Their contents by id; messages that share a content share its packed form.
        """
        contents = {id(message.content): message.content for message in messages.values()}
        uses = Counter(id(message.content) for message in messages.values())
        shared = _shared_parts(contents, uses)
        stored: dict[Hashable, Reference] = {}

        def packed_part(part: Any) -> Any:
            identity = _identity(part)
            if identity not in shared:
                return part
            if identity not in stored:
                stored[identity] = self._store(part)
            return stored[identity]

        packed = {key: _pack(content, packed_part) for key, content in contents.items()}
        result = {
            message_id: packed[id(message.content)] for message_id, message in messages.items()
        }
        for content in result.values():
            self._uses.update(content.keys)
        return result

    def _store(self, part: object) -> Reference:
        reference = Reference(self.stored)
        self._references[reference.key] = ray.put(pickle.dumps(part, protocol=5))
        self.stored += 1
        return reference

    def references(self, keys: Iterable[int]) -> dict[int, ray.ObjectRef]:
        """Look up where broadcasts lie.

        Args:
            keys: Their numbers.

        Returns:
            Ray's references, to be sent to a worker.
        """
        return {key: self._references[key] for key in keys}

    def release(self, content: PackedContent) -> None:
        """Note that a message needs its broadcasts no more; what none needs is freed.

        Args:
            content: The message's packed content.
        """
        for key in content.keys:
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key], self._references[key]


class ReceivedBroadcasts:
    """A worker's side: the broadcasts it fetched, of which it keeps the latest few."""

    def __init__(self) -> None:
        """Start with nothing fetched."""
        self._parts: OrderedDict[int, object] = OrderedDict()

    def unpack(self, content: PackedContent, references: Mapping[int, ray.ObjectRef]) -> RecordDict:
        """Restore a message's content.

        Args:
            content: The packed content.
            references: Where its broadcasts lie.

        Returns:
            The content. Records in it may be shared with other messages.
        """

        def whole(part: Any) -> Any:
            if isinstance(part, Reference):
                return self._fetch(part.key, references)
            if isinstance(part, dict):
                return ArrayRecord({name: whole(array) for name, array in part.items()})
            return part

        return RecordDict({name: whole(part) for name, part in content.records.items()})

    def _fetch(self, key: int, references: Mapping[int, ray.ObjectRef]) -> Any:
        if key not in self._parts:
            stored = ray.get(references[key], timeout=_FETCH_SECONDS)
            # Written by the grid's own process a moment ago, for this one.
            self._parts[key] = pickle.loads(stored)  # noqa: S301
            while len(self._parts) > _RECORDS_CACHED:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        return self._parts[key]


def _identity(part: Any) -> Hashable:
    """Tell objects apart while they live; an array by its bytes, as flwr copies what is around."""
    if isinstance(part, Array):
        return (id(part.data), part.dtype, part.shape, part.stype)
    return id(part)


def _shared_parts(contents: Mapping[int, RecordDict], uses: Mapping[int, int]) -> set[Hashable]:
    """Find the large records and arrays that more than one message carries."""
    record_uses: Counter[Hashable] = Counter()
    records: dict[Hashable, Record] = {}
    for key, content in contents.items():
        for record in content.values():
            record_uses[_identity(record)] += uses[key]
            records[_identity(record)] = record
    shared = {
        key
        for key, record in records.items()
        if record_uses[key] > 1 and _size(record) > _SHARED_BYTES
    }
    array_uses = Counter(
        _identity(array)
        for key, record in records.items()
        if key not in shared and isinstance(record, ArrayRecord)
        for array in record.values()
        if len(array.data) > _SHARED_BYTES
    )
    return shared | {key for key, count in array_uses.items() if count > 1}


def _pack(content: RecordDict, packed_part: Callable[[Any], Any]) -> PackedContent:
    records: dict[str, Record | SplitRecord | Reference] = {}
    keys: set[int] = set()
    size = 0
    for name, record in content.items():
        part = packed_part(record)
        if isinstance(part, Reference):
            keys.add(part.key)
        elif isinstance(part, ArrayRecord):
            split: SplitRecord = {key: packed_part(array) for key, array in part.items()}
            referred = {array.key for array in split.values() if isinstance(array, Reference)}
            keys |= referred
            size += sum(len(array.data) for array in split.values() if isinstance(array, Array))
            part = split if referred else part
        else:
            size += _size(record)
        records[name] = part
    return PackedContent(records=records, keys=frozenset(keys), size=size)


def _size(record: Record) -> int:
    """Bytes of a record's payload; numbers are not worth counting."""
    if isinstance(record, ArrayRecord):
        return sum(len(array.data) for array in record.values())
    values = [value if isinstance(value, list) else [value] for value in record.values()]
    return sum(len(item) for value in values for item in value if isinstance(item, bytes | str))
