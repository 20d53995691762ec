"""A round in progress: what it started from, and what each of its clients started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from intarsia_aggregators.base import GlobalState
from intarsia_client.assignment import TrainAssignment
from intarsia_client.start import assigned_start
from intarsia_client.wire import Adapter

from intarsia_platform.federation.broadcast import Broadcast, one_at_a_time


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """What a round in progress needs to know.

    Args:
        number: From 1.
        broadcast: The published adapter that it started from, as it is sent.
        exact: What the server keeps beside it; None where the published adapter is all there is.
        assignments: From node identifier to what the node was asked.
    """

    number: int
    broadcast: Broadcast
    exact: Adapter | None
    assignments: Mapping[int, TrainAssignment]
    _starts: dict[object, Adapter] = field(default_factory=dict, repr=False, compare=False)

    @property
    def state(self) -> GlobalState:
        """The global adapter that the round started from."""
        return GlobalState(published=self.broadcast.published, exact=self.exact)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """From each module to its (d_out, d_in)."""
        modules = self.broadcast.published.modules
        return {name: modules[name].shape for name in modules}

    def start(self, assignment: TrainAssignment) -> Adapter:
        """What a client trains from; clients that train alike share it, computed as it is read.

        Args:
            assignment: The client's assignment.

        Returns:
            Its trainable start.
        """
        alike = (
            assignment.rank,
            assignment.scaling,
            assignment.start,
            assignment.client if assignment.start == "sampled" else "",
            assignment.target_modules,
            assignment.shared_factors,
        )
        if alike not in self._starts:
            start = assigned_start(self.broadcast.published, assignment).trainable
            self._starts[alike] = one_at_a_time(start)
        return self._starts[alike]

    def bytes_down(self, node: int) -> int:
        """Bytes of the message that asks a node to train."""
        assignment = self.assignments[node]
        return self.broadcast.size(assignment) + len(assignment.to_json())
