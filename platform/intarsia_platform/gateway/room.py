"""How many requests there are at once, each principal's and all together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from intarsia_platform.gateway.failures import ServerBusy, TooManyRequests


class Room:
    """Counts requests; for one event loop, without locks.

    Args:
        per_principal: Requests of one principal at once.
        total: Requests of everybody at once.
    """

    def __init__(self, per_principal: int, total: int) -> None:
        """Begin with none."""
        self._per_principal = per_principal
        self._total = total
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Requests there are now."""
        return self._held.total()

    @contextlib.contextmanager
    def hold(self, principal: str) -> Iterator[None]:
        """Count a request for as long as the block runs.

        Args:
            principal: Whose it is.

        Yields:
            Nothing.

        Raises:
            ServerBusy: If everybody together has too many.
            TooManyRequests: If the principal has too many.
        """
        if self._held[principal] >= self._per_principal:
            raise TooManyRequests(
                "requests",
                f"{self._per_principal} of yours are being answered",
                "wait until one has ended",
            )
        if self.held >= self._total:
            raise ServerBusy("requests", self._total, "try again in a moment")
        self._held[principal] += 1
        try:
            yield
        finally:
            self._held[principal] -= 1
            if not self._held[principal]:
                # Else every principal that ever asked would be kept.
                del self._held[principal]
