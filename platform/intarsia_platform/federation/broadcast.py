"""What a round sends: the global adapter encoded once, and whole or as a prefix for each client."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from flwr.app import ArrayRecord
from intarsia_client.assignment import TrainAssignment
from intarsia_client.files import bytes_digest
from intarsia_client.messages import broadcast_record
from intarsia_client.peft_files import EncodedAdapter, decode_adapter
from intarsia_client.transport import (
    broadcast_prefix_size,
    decode_broadcast,
    encode_broadcast,
)
from intarsia_client.wire import Adapter, ComputedModules


class Broadcast:
    """One global adapter as its round sends it.

    A client whose round starts from ``"prefix"`` is sent the leading components that its rank can
    hold and nothing else; all such clients of one rank share one record, everybody else the whole
    file's.

    Args:
        encoded: The published adapter, PEFT's two files.
        precision: One of :data:`intarsia_client.assignment.PRECISIONS`.
    """

    def __init__(self, encoded: EncodedAdapter, precision: str) -> None:
        """Encode the adapter."""
        self.start_digest = encoded.digest
        self._data = encode_broadcast(
            decode_adapter(encoded.configuration, encoded.tensors), precision
        )
        self.published = one_at_a_time(decode_broadcast(self._data))
        self._parts: dict[int | None, tuple[str, ArrayRecord, int]] = {}

    def named_in(self, assignment: TrainAssignment) -> TrainAssignment:
        """The assignment with the digest of the bytes that will travel with it."""
        digest, _, _ = self._part(assignment)
        return replace(assignment, broadcast_digest=digest)

    def record(self, assignment: TrainAssignment) -> ArrayRecord:
        """The record for a client's message, shared between all that are sent the same bytes."""
        return self._part(assignment)[1]

    def size(self, assignment: TrainAssignment) -> int:
        """Bytes of the broadcast that a client is sent."""
        return self._part(assignment)[2]

    def _part(self, assignment: TrainAssignment) -> tuple[str, ArrayRecord, int]:
        rank = assignment.rank if assignment.start == "prefix" else None
        if rank not in self._parts:
            data = self._data
            if rank is not None:
                data = data[: broadcast_prefix_size(data, rank)]
            self._parts[rank] = bytes_digest(data), broadcast_record(data), len(data)
        return self._parts[rank]


def one_at_a_time(adapter: Adapter) -> Adapter:
    """An adapter that remembers the module it computed last.

    Whoever adds updates up asks for one module many times, once for each client, and then for the
    next.

    Args:
        adapter: An adapter whose modules are computed at each access.

    Returns:
        The same adapter.
    """
    modules = adapter.modules
    return replace(
        adapter, modules=ComputedModules(modules, lru_cache(maxsize=1)(modules.__getitem__))
    )


def as_received(adapter: Adapter, precision: str) -> Adapter:
    """An adapter as the clients will have it.

    Args:
        adapter: What is to be published.
        precision: As in :class:`Broadcast`.

    Returns:
        What decoding its broadcast gives; encoding that again gives the same bytes.
    """
    return decode_broadcast(encode_broadcast(adapter, precision))
