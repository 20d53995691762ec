"""What an aggregation method is: explicit state, one update at a time, one result at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from intarsia_client.wire import Adapter


@dataclass(frozen=True, kw_only=True)
class WeightedUpdate:
    """An admitted update and its weight, as an aggregator sees it.

    Args:
        client: The client's name, for messages only.
        weight: The update's weight, positive; the weights of a round need not sum to 1.
        start: What the client trained from, at its own rank and scaling.
        trained: What it sent back.
    """

    client: str
    weight: float
    start: Adapter
    trained: Adapter


class Aggregation(Protocol):
    """One round's aggregation under way."""

    def accumulate(self, update: WeightedUpdate) -> None:
        """Take one admitted update in.

        Args:
            update: The update; its modules and shapes are those of the global adapter.
        """

    def finalize(self) -> Adapter:
        """Form the new global adapter.

        Returns:
            The adapter, each module's directions largest first.

        Raises:
            InputError: If nothing was accumulated.
        """


class AggregationMethod(Protocol):
    """Begins one round's aggregation from the adapter that was published last."""

    def __call__(self, published: Adapter) -> Aggregation:
        """Begin.

        Args:
            published: The global adapter that the round started from.

        Returns:
            The aggregation, empty.
        """
