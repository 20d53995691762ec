"""Virtual clients and what each of them remembers between rounds.

A simulated client is a node id, the few settings it was given, and a state: Flower's
``Context.state``. None of it needs memory while the client is idle. Settings are looked up when a
message is about to be answered, and states lie outside the process, behind :class:`StateStore`.

Which state a message sees depends on its round alone, so a round that is sent again after a crash
finds each client as it was before that round:

* a train message of round *r* sees the latest state saved in a round before *r*, and what it
  leaves is saved as round *r*;
* an evaluate or query message of round *r* sees the latest state up to and including *r*, and
  what it leaves is discarded;
* a message without a round (``group_id`` empty or not a whole number) counts as round 0, which
  has no earlier one: it sees the state of round 0, and training replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import RecordDict
from flwr.app.message_type import MessageType
from flwr.app.metadata import Metadata
from flwr.app.user_config import UserConfigValue
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from intarsia_client.errors import InputError, StorageError

_ROUNDS_KEPT = 2
_MEMORY_LIMIT_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class VirtualClient:
    """One simulated client.

    Attributes:
        node_id: Flower's node id, at least 0 and unique within a grid.
        node_config: What its ``Context.node_config`` holds, such as its name and rank.
    """

    node_id: int
    node_config: Mapping[str, UserConfigValue]


@dataclass(frozen=True, kw_only=True)
class VirtualClients:
    """Any number of simulated clients, described without being listed.

    Attributes:
        node_ids: The node ids; a ``range`` costs no memory however many clients it stands for.
        node_config: Gives a node id's settings; called in the grid's own process, each time a
            message is about to be answered, so it must give the same answer each time.
    """

    node_ids: Sequence[int]
    node_config: Callable[[int], Mapping[str, UserConfigValue]]

    @classmethod
    def listed(cls, clients: Sequence[VirtualClient]) -> VirtualClients:
        """Describe clients that are at hand one by one.

        Args:
            clients: The clients, in the order in which the grid names their node ids.

        Returns:
            The same clients, found by node id.

        Raises:
            InputError: If two clients share a node id.
        """
        by_id = {client.node_id: client.node_config for client in clients}
        if len(by_id) != len(clients):
            raise InputError(
                "virtual clients",
                f"{len(clients)} clients with {len(by_id)} node ids",
                "give each client a node id of its own",
            )
        return cls(node_ids=tuple(by_id), node_config=by_id.__getitem__)


class StateStore(Protocol):
    """Where the states of virtual clients lie, by client and round."""

    def load(self, node_id: int, before_round: int) -> bytes | None:
        """Find the latest state that a client left before a round.

        Args:
            node_id: The client.
            before_round: Only states of rounds smaller than this count.

        Returns:
            The bytes as they were saved, or None where there are none.
        """
        ...

    def save_many(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep the states of some clients, all or none of them.

        Args:
            rows: ``(node_id, round, state)``; a row replaces an earlier one of the same client
                and round.
        """
        ...


class MemoryStates:
    """States kept in this process, for runs that need not outlive it.

    Of each client the states of its latest two rounds are kept, which is what the rule of this
    module can ask for: the current round's, and the one before it when that round is sent again.
    The sum of their sizes is bounded. A state over the bound is refused rather than another one
    forgotten, since a state may hold what must not be lost, such as privacy already spent.

    Args:
        limit_bytes: The bound on the sum of all states' sizes, in bytes.
    """

    def __init__(self, *, limit_bytes: int = _MEMORY_LIMIT_BYTES) -> None:
        """Start with nothing remembered."""
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._states: dict[int, dict[int, bytes]] = {}

    def load(self, node_id: int, before_round: int) -> bytes | None:
        """See :meth:`StateStore.load`."""
        states = self._states.get(node_id, {})
        earlier = [number for number in states if number < before_round]
        return states[max(earlier)] if earlier else None

    def save_many(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """See :meth:`StateStore.save_many`.

        Raises:
            StorageError: If the states would outgrow the bound.
        """
        changed: dict[int, dict[int, bytes]] = {}
        grown = self._bytes
        for node_id, number, state in rows:
            states = changed.get(node_id) or dict(self._states.get(node_id, {}))
            held = _size(states)
            states[number] = state
            for oldest in sorted(states)[:-_ROUNDS_KEPT]:
                del states[oldest]
            grown += _size(states) - held
            changed[node_id] = states
        if grown > self._limit_bytes:
            raise StorageError(
                "client states held in memory",
                f"{grown} bytes, {self._limit_bytes} allowed",
                "give the grid a state store that keeps them on disk",
            )
        self._states.update(changed)
        self._bytes = grown


def _size(states: Mapping[int, bytes]) -> int:
    return sum(len(state) for state in states.values())


def round_number(metadata: Metadata) -> int:
    """Read the round a message belongs to.

    Args:
        metadata: The message's metadata; its ``group_id`` names the round.

    Returns:
        The round, or 0 where the group id is no whole number of at least 0.
    """
    group = metadata.group_id
    return int(group) if group.isdecimal() else 0


def trains(metadata: Metadata) -> bool:
    """Tell whether a message changes its client's state.

    Args:
        metadata: The message's metadata.

    Returns:
        True for a train message, with whatever action.
    """
    return metadata.message_type.partition(".")[0] == MessageType.TRAIN


def load_state(states: StateStore, metadata: Metadata) -> bytes | None:
    """Load the state that a message's client sees, by this module's rule.

    Args:
        states: Where the states lie.
        metadata: The message's metadata.

    Returns:
        The state's bytes, or None where the client has none yet.
    """
    number = round_number(metadata)
    before = number if trains(metadata) and number > 0 else number + 1
    return states.load(metadata.dst_node_id, before)


def encode_state(state: RecordDict) -> bytes:
    """Turn a client's state into bytes, with Flower's protocol buffers and never pickle.

    Args:
        state: The state; not changed.

    Returns:
        The bytes; none of them for an empty state, and the same for equal records in equal order.
    """
    return recorddict_to_proto(state).SerializeToString() if state else b""


def decode_state(encoded: bytes | None) -> RecordDict:
    """Turn bytes back into a client's state.

    Args:
        encoded: What :func:`encode_state` gave, or None for a client without a state.

    Returns:
        A state that nobody else holds.
    """
    if not encoded:
        return RecordDict()
    return recorddict_from_proto(ProtoRecordDict.FromString(encoded))
