"""Runs a method's formula over an adapter, one module after the other.

Here is everything that is the same for all methods: who may count and how much, what an update
must have, the shares that sum to 1, the heads, and what the result leaves out. An update's factors
are read when their module's turn comes and let go before the next, so that updates that lie on
disk never are in memory together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, LowRankFactors

from intarsia_aggregators.base import (
    Aggregation,
    AggregationResult,
    AggregationSettings,
    Contribution,
    GlobalState,
    ModuleOutcome,
    ModuleRound,
    ModuleRule,
    WeightedUpdate,
)
from intarsia_aggregators.fedavg import average_heads


def both_factors(round_number: int) -> str:
    """Both factors are trained, whatever the round."""
    return "both"


@dataclass(frozen=True, kw_only=True)
class ModulewiseMethod:
    """A method made of a formula and of what it demands of its updates.

    Args:
        rule: The formula.
        mixed_ranks: Whether clients may have unequal ranks or scalings.
        adds_deltas: Whether only what a client added counts, so that updates may be bounded by a
            factor and may lack modules.
        trained_factors: From the round's number to the factors that are trained in it:
            ``"both"``, ``"a"``, ``"b"`` or ``"none"``. The others must come back as they were.
    """

    rule: ModuleRule
    mixed_ranks: bool = True
    adds_deltas: bool = True
    trained_factors: Callable[[int], str] = both_factors

    def __call__(self, state: GlobalState, settings: AggregationSettings) -> Aggregation:
        """Begin a round.

        Args:
            state: What the round started from.
            settings: How to aggregate.

        Returns:
            The aggregation, empty.

        Raises:
            InputError: If only heads are trained and the adapter has none.
        """
        trains = self.trained_factors(settings.round_number)
        if trains == "none" and not state.published.dense:
            raise InputError(
                "head", "the adapter has none", "choose a method that trains the factors"
            )
        return ModulewiseAggregation(self, trains, state, settings)


class ModulewiseAggregation:
    """One round under way.

    Args:
        method: The method.
        trains: The factors that this round trains.
        state: What the round started from.
        settings: How to aggregate.
    """

    def __init__(
        self,
        method: ModulewiseMethod,
        trains: str,
        state: GlobalState,
        settings: AggregationSettings,
    ) -> None:
        self._method = method
        self._trains = trains
        self._state = state
        self._settings = settings
        self._updates: dict[str, WeightedUpdate] = {}
        self._modules: dict[str, frozenset[str]] = {}

    def accumulate(self, update: WeightedUpdate) -> None:
        """Take one admitted update in; its factors are not read before :meth:`finalize`.

        Args:
            update: The update.

        Raises:
            InputError: If its weight or factor cannot be, its client came before, its modules
                or its head are not the adapter's, or the method cannot do with its factor or
                without a module that it lacks.
        """
        client = update.client
        if not update.weight > 0.0 or not math.isfinite(update.weight):
            raise InputError(f"weight of {client}", update.weight, "give a positive number")
        if not update.factor >= 0.0 or not math.isfinite(update.factor):
            raise InputError(f"factor of {client}", update.factor, "give a number of at least 0")
        if client in self._updates:
            raise InputError(f"update of {client}", "comes twice", "count each client once")
        modules = frozenset(update.trained.modules)
        self._check_modules(update, modules)
        self._check_head(update)
        self._updates[client] = update
        self._modules[client] = modules

    def finalize(self) -> AggregationResult:
        """Form the new global adapter, module after module.

        Returns:
            The state that the next round starts from, and what it leaves out.

        Raises:
            InputError: If nothing was accumulated, an update does not fit the method, or the
                result is beyond float32.
        """
        if not self._updates:
            raise InputError("updates to aggregate", 0, "admit at least one update")
        shares = self._shares()
        outcomes = {
            name: self._outcome(name, shares) for name in tuple(self._state.published.modules)
        }
        updates = list(self._updates.values())
        heads = average_heads(self._state.whole.dense, updates, list(shares.values()))
        exact = replace(
            self._state.published,
            modules={name: outcome.exact for name, outcome in outcomes.items()},
            dense=heads,
        )
        return _result(exact, outcomes)

    def _shares(self) -> dict[str, float]:
        total = sum(update.weight for update in self._updates.values())
        if not math.isfinite(total):
            raise InputError("sum of the weights", total, "give smaller weights")
        return {client: update.weight / total for client, update in self._updates.items()}

    def _outcome(self, name: str, shares: dict[str, float]) -> ModuleOutcome:
        published = self._state.published.modules[name]
        exact = published if self._state.exact is None else self._state.exact.modules[name]
        contributions = tuple(self._contributions(name, published.shape, shares))
        if not self._method.mixed_ranks:
            _check_one_rank(name, contributions)
        module = ModuleRound(
            name=name,
            published=published,
            exact=exact,
            contributions=contributions,
            settings=self._settings,
        )
        # What overflows is refused below, with the module's name.
        with np.errstate(over="ignore", invalid="ignore"):
            outcome = self._method.rule(module)
        for factors in (outcome.exact, outcome.published or outcome.exact):
            if not (np.isfinite(factors.a).all() and np.isfinite(factors.b).all()):
                raise InputError(f"aggregate of {name}", "not finite", "refuse updates so large")
        return outcome

    def _contributions(
        self, name: str, shape: tuple[int, int], shares: dict[str, float]
    ) -> Iterator[Contribution]:
        for client, update in self._updates.items():
            if name not in self._modules[client]:
                continue
            start, trained = update.start.modules[name], update.trained.modules[name]
            _check_factors(f"{name} of {client}", start, trained, shape)
            _check_frozen(f"{name} of {client}", start, trained, self._trains)
            yield Contribution(
                client=client,
                share=shares[client],
                factor=update.factor,
                start=start,
                trained=trained,
            )

    def _check_modules(self, update: WeightedUpdate, trained: frozenset[str]) -> None:
        thing = f"modules of {update.client}"
        known = frozenset(self._state.published.modules) & frozenset(update.start.modules)
        if trained - known:
            raise InputError(thing, min(trained - known), "train the modules that were assigned")
        if self._method.adds_deltas:
            return
        if update.factor != 1.0:
            raise InputError(
                f"factor of {update.client}",
                update.factor,
                "choose a method that adds what clients added",
            )
        missing = frozenset(self._state.published.modules) - trained
        if missing:
            raise InputError(thing, f"{min(missing)} is missing", "train every module")

    def _check_head(self, update: WeightedUpdate) -> None:
        wanted = {name: head.shape for name, head in self._state.published.dense.items()}
        for adapter in (update.start, update.trained):
            found = {name: head.shape for name, head in adapter.dense.items()}
            if found != wanted:
                raise InputError(f"head of {update.client}", found, f"send {wanted}")


def _check_factors(
    thing: str, start: LowRankFactors, trained: LowRankFactors, shape: tuple[int, int]
) -> None:
    if trained.shape != shape or start.shape != shape:
        raise InputError(thing, f"shape {trained.shape}", f"send the module's shape {shape}")
    if trained.rank != start.rank:
        raise InputError(thing, f"rank {trained.rank}", f"send the start's rank {start.rank}")
    for factors in (start, trained):
        finite = np.isfinite(factors.a).all() and np.isfinite(factors.b).all()
        if not (finite and math.isfinite(factors.scaling)):
            raise InputError(thing, "not finite", "refuse the update")


def _check_frozen(thing: str, start: LowRankFactors, trained: LowRankFactors, trains: str) -> None:
    for side, before, after in (("a", start.a, trained.a), ("b", start.b, trained.b)):
        if trains not in ("both", side) and not np.array_equal(before, after):
            raise InputError(
                f"factor {side.upper()} of {thing}", "changed", "send it as it was given"
            )


def _check_one_rank(name: str, contributions: tuple[Contribution, ...]) -> None:
    for one in contributions[1:]:
        first, other = contributions[0].trained, one.trained
        if (first.rank, first.scaling) != (other.rank, other.scaling):
            raise InputError(
                f"{name} of {one.client}",
                f"rank {other.rank}, scaling {other.scaling}",
                f"use one rank and scaling; {contributions[0].client} has {first.rank} and "
                f"{first.scaling}",
            )


def _result(exact: Adapter, outcomes: dict[str, ModuleOutcome]) -> AggregationResult:
    energy = math.fsum(outcome.energy for outcome in outcomes.values())
    published = {
        name: outcome.exact if outcome.published is None else outcome.published
        for name, outcome in outcomes.items()
    }
    held_back = any(outcome.published is not None for outcome in outcomes.values())
    state = GlobalState(
        published=replace(exact, modules=published), exact=exact if held_back else None
    )
    return AggregationResult(
        state=state,
        cut_energy=math.fsum(one.cut for one in outcomes.values()) / energy if energy else 0.0,
        residual_energy=(
            math.fsum(one.held_back for one in outcomes.values()) / energy if energy else 0.0
        ),
    )
