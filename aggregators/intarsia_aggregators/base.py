"""What an aggregation is: a state, one update at a time, one result at the end.

A method is one function from what a round brought to one module (:class:`ModuleRound`) to what
that module becomes (:class:`ModuleOutcome`); :mod:`intarsia_aggregators.modulewise` does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from intarsia_client.wire import Adapter, LowRankFactors


@dataclass(frozen=True, kw_only=True)
class WeightedUpdate:
    """An admitted update and what it counts, as an aggregation sees it.

    Args:
        client: The client's name, for messages, and so that nobody counts twice.
        weight: The update's weight, positive; weights are divided by the cohort's sum.
        start: What the client trained from, at its own rank and scaling.
        trained: What it sent back; modules that it lacks were not trained.
        factor: Multiplies what the client *added* to its start, at least 0; a norm bound lowers
            it. Factors are not divided by their sum.
    """

    client: str
    weight: float
    start: Adapter
    trained: Adapter
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GlobalState:
    """The global adapter between two rounds.

    Args:
        published: What the clients are sent, as they decode it.
        exact: What the server keeps: ``published``, what is held back from it and what its
            encoding rounded off; None where ``published`` is all there is.
    """

    published: Adapter
    exact: Adapter | None = None

    @property
    def whole(self) -> Adapter:
        """The exact adapter, or the published one where that is all there is."""
        return self.published if self.exact is None else self.exact


@dataclass(frozen=True, kw_only=True)
class AggregationSettings:
    """How a round is aggregated.

    Args:
        broadcast_rank: Largest rank that is published, 0 for no bound; of the methods only the
            ledger can hold back what is beyond it.
        residual_rank: How many directions beyond ``broadcast_rank`` the ledger keeps, at least 0.
        round_number: The round, from 1.
        rank: The largest rank that a client is assigned; 0 for the largest that came.
    """

    broadcast_rank: int = 0
    residual_rank: int = 256
    round_number: int = 1
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class AggregationResult:
    """What a round ends with.

    Args:
        state: The new global adapter.
        cut_energy: Share of its squared Frobenius norm that was lost for good, between 0 and 1.
        residual_energy: Share of its squared Frobenius norm that is kept and not yet published.
    """

    state: GlobalState
    cut_energy: float = 0.0
    residual_energy: float = 0.0


class Aggregation(Protocol):
    """One round's aggregation under way."""

    def accumulate(self, update: WeightedUpdate) -> None:
        """Take one admitted update in; its factors are not read before :meth:`finalize`.

        Args:
            update: The update.

        Raises:
            InputError: If its weight, factor or modules cannot be, or its client came before.
        """

    def finalize(self) -> AggregationResult:
        """Form the new global adapter.

        Returns:
            The state that the next round starts from, and what it leaves out.

        Raises:
            InputError: If nothing was accumulated, or an update does not fit the method.
        """


class AggregationMethod(Protocol):
    """Begins one round's aggregation."""

    def __call__(self, state: GlobalState, settings: AggregationSettings) -> Aggregation:
        """Begin.

        Args:
            state: What the round started from; clients have its ``published``.
            settings: How to aggregate.

        Returns:
            The aggregation, empty.
        """


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one update brings to one module.

    Args:
        client: The client's name.
        share: The update's weight over the cohort's; the shares of all updates of a round sum to
            1, those of one module to less where some updates lack it.
        factor: Multiplies what the client added.
        start: What it started from, at its own rank and scaling.
        trained: What it sent, at the same rank.
    """

    client: str
    share: float
    factor: float
    start: LowRankFactors
    trained: LowRankFactors

    @property
    def weight(self) -> float:
        """What the difference between ``trained`` and ``start`` counts."""
        return self.share * self.factor


@dataclass(frozen=True, kw_only=True)
class ModuleRound:
    """One module's part of a round.

    Args:
        name: The module's full name.
        published: What clients were sent of it.
        exact: What the server keeps of it; ``published`` where that is all there is.
        contributions: What came, in the order of the updates; empty where nobody trained it.
        settings: How to aggregate.
    """

    name: str
    published: LowRankFactors
    exact: LowRankFactors
    contributions: tuple[Contribution, ...]
    settings: AggregationSettings


@dataclass(frozen=True, kw_only=True)
class ModuleOutcome:
    """What a module becomes.

    Args:
        exact: What the server keeps.
        published: What is published of it; None for all.
        energy: Squared Frobenius norm before anything was cut; 0 where nothing was.
        cut: What of ``energy`` was lost for good.
        held_back: What of ``energy`` is kept and not published.
    """

    exact: LowRankFactors
    published: LowRankFactors | None = None
    energy: float = 0.0
    cut: float = 0.0
    held_back: float = 0.0


class ModuleRule(Protocol):
    """A method's formula: one module's round in, what the module becomes out."""

    def __call__(self, module: ModuleRound, /) -> ModuleOutcome:
        """Aggregate one module.

        Args:
            module: What the round brought; its factors are finite and of the module's shape.

        Returns:
            What the module becomes.

        Raises:
            InputError: If a contribution does not fit the method.
        """
