"""What a client declares that it has."""

from __future__ import annotations

import math
from dataclasses import dataclass

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ClientResources:
    """One client's memory, speed and link; what it does not declare has no bound.

    Args:
        memory_mb: Memory that training may take beyond the process itself, in megabytes (10^6).
        gflops: Floating-point operations a second that its training reaches, in 10^9.
        upload_mbps: Its link to the server, in 10^6 bits a second.
        download_mbps: Its link from the server, likewise.
    """

    memory_mb: float = math.inf
    gflops: float = math.inf
    upload_mbps: float = math.inf
    download_mbps: float = math.inf

    @property
    def memory_bytes(self) -> float:
        """The memory in bytes."""
        return self.memory_mb * MEGABYTE

    @property
    def flops_per_second(self) -> float:
        """The speed in operations a second."""
        return self.gflops * 1e9

    @property
    def bytes_up_per_second(self) -> float:
        """The link to the server in bytes a second."""
        return self.upload_mbps * 1e6 / 8

    @property
    def bytes_down_per_second(self) -> float:
        """The link from the server in bytes a second."""
        return self.download_mbps * 1e6 / 8

    @property
    def timed(self) -> bool:
        """Whether anything is declared that takes time."""
        return not all(map(math.isinf, (self.gflops, self.upload_mbps, self.download_mbps)))


@dataclass(frozen=True, kw_only=True)
class ResourcesConfiguration:
    """What the clients have, each list given to them in turn as ranks are.

    Args:
        memory_mb: As in :class:`ClientResources`; an empty list sets no bound.
        gflops: Likewise.
        upload_mbps: Likewise.
        download_mbps: Likewise.
        round_seconds: Longest time that a round may take a client, in seconds; 0 for what the
            median client takes where only its memory bounds it.
    """

    memory_mb: tuple[float, ...] = ()
    gflops: tuple[float, ...] = ()
    upload_mbps: tuple[float, ...] = ()
    download_mbps: tuple[float, ...] = ()
    round_seconds: float = 0.0

    @property
    def declared(self) -> bool:
        """Whether anything bounds what a client may train."""
        return any((self.memory_mb, self.gflops, self.upload_mbps, self.download_mbps))

    def of(self, turn: int) -> ClientResources:
        """What one client has.

        Args:
            turn: The client's place among all clients, by name.

        Returns:
            Its resources.
        """

        def item(values: tuple[float, ...]) -> float:
            return values[turn % len(values)] if values else math.inf

        return ClientResources(
            memory_mb=item(self.memory_mb),
            gflops=item(self.gflops),
            upload_mbps=item(self.upload_mbps),
            download_mbps=item(self.download_mbps),
        )
