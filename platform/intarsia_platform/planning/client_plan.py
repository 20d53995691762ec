"""What planning comes to: for each client a rank, its modules, and what they cost it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """What one client is to train, and what that costs it by the cost model.

    Args:
        client: The client's name.
        rank: Its rank; 0 where nothing fits, and it then trains nothing.
        target_modules: Full names of the modules that it trains, sorted.
        energy: Share of the global adapter's expected energy that these directions hold, between
            0 and 1.
        memory_bytes: Memory of its training, beyond the process itself.
        flops: Floating-point operations of a round.
        bytes_up: Bytes that it sends in a round.
        bytes_down: Bytes that it is sent in a round.
        seconds: How long a round takes it; None where neither its speed nor its link is declared.
        note: One line where something does not fit: what, and what it would need.
    """

    client: str
    rank: int
    target_modules: tuple[str, ...]
    energy: float
    memory_bytes: int
    flops: int
    bytes_up: int
    bytes_down: int
    seconds: float | None = None
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is something that the client can train."""
        return self.rank > 0

    def as_mapping(self) -> dict[str, Any]:
        """Plain JSON of all fields."""
        return {**dataclasses.asdict(self), "target_modules": list(self.target_modules)}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ClientPlan:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(**{**mapping, "target_modules": tuple(mapping["target_modules"])})


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """The clients' plans from one round on.

    Args:
        round: The first round that it holds for, from 1.
        round_seconds: The time that a round was planned to take, in seconds; None where no client
            declares what would take time.
        modules: How many modules there are to train.
        clients: The clients, in the order of their names.
    """

    round: int
    round_seconds: float | None
    modules: int
    clients: tuple[ClientPlan, ...]

    @property
    def by_client(self) -> dict[str, ClientPlan]:
        """From each client's name to its plan."""
        return {client.client: client for client in self.clients}

    @property
    def largest_rank(self) -> int:
        """The largest rank of any client, 0 where nothing fits any."""
        return max((client.rank for client in self.clients), default=0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not fit, a line a client."""
        return tuple(client.note for client in self.clients if client.note)

    def as_mapping(self) -> dict[str, Any]:
        """Plain JSON of all fields."""
        return {
            "round": self.round,
            "round_seconds": self.round_seconds,
            "modules": self.modules,
            "clients": [client.as_mapping() for client in self.clients],
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RankPlan:
        """Read back what :meth:`as_mapping` wrote."""
        clients = tuple(ClientPlan.from_mapping(client) for client in mapping["clients"])
        return cls(**{**mapping, "clients": clients})
