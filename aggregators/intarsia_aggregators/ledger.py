"""The ledger: an exact weighted sum of what clients added, kept in factors.

With G the published adapter, s_i, A_i, B_i what client i sent, S_i the start it was given (the
leading r_i directions of G and directions that add nothing), and weights p_i that sum to 1:

    G' = G + sum_i p_i (s_i B_i A_i - S_i)

so a round in which nobody trains leaves G as it is, whatever the ranks: averaging the full adapters
instead would shrink direction j by the weight of the clients that hold it. The sum is formed per
module as one product of stacked factors and decomposed in float64; nothing but rounding is cut.

Dense tensors (a classification head) are averaged by weight.

Formal guarantee: per module, the result's relative Frobenius error against the float64 dense sum
is at most 1e-6 (float32 rounding of the factors and a cut below 1e-8 of the norm).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.start import held_directions
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors
from numpy.typing import NDArray

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.factors import Term, decompose, stack, without_rounding


class LedgerAggregation:
    """One round of the ledger.

    Args:
        published: The global adapter that the round started from.
    """

    def __init__(self, published: Adapter) -> None:
        self._published = published
        self._terms: dict[str, list[Term]] = defaultdict(list)
        self._starts: dict[tuple[int, float], tuple[float, Adapter]] = {}
        self._dense: dict[str, NDArray[np.float64]] = {}
        self._weight = 0.0

    def accumulate(self, update: WeightedUpdate) -> None:
        """Take one admitted update in.

        Args:
            update: The update.

        Raises:
            InputError: If its modules are not those of the published adapter or its weight is not
                positive.
        """
        if not update.weight > 0.0 or not np.isfinite(update.weight):
            raise InputError(f"weight of {update.client}", update.weight, "give a positive number")
        for adapter in (update.trained, update.start):
            if set(adapter.modules) != set(self._published.modules):
                odd = set(adapter.modules) ^ set(self._published.modules)
                raise InputError(
                    f"modules of {update.client}", min(odd), "train the modules that were assigned"
                )
        for name, factors in update.trained.modules.items():
            self._terms[name].append(Term(weight=update.weight, factors=factors))
        # Clients of one rank and scaling share one start, so it is subtracted once for them all.
        first = next(iter(update.start.modules.values()))
        key = (first.rank, first.scaling)
        weight, _ = self._starts.get(key, (0.0, update.start))
        self._starts[key] = (weight + update.weight, update.start)
        for name, tensor in update.trained.dense.items():
            addition = update.weight * tensor.astype(np.float64)
            self._dense[name] = self._dense[name] + addition if name in self._dense else addition
        self._weight += update.weight

    def finalize(self) -> Adapter:
        """Form the new global adapter.

        Returns:
            The adapter with balanced factors of scaling 1, each module's directions largest first.

        Raises:
            InputError: If nothing was accumulated.
        """
        if self._weight == 0.0:
            raise InputError("updates to aggregate", 0, "admit at least one update")
        modules = {name: self._module(name) for name in self._published.modules}
        dense: dict[str, FloatArray] = {
            name: (total / self._weight).astype(np.float32)
            for name, total in sorted(self._dense.items())
        }
        return replace(self._published, modules=modules, dense=dense)

    def _module(self, name: str) -> LowRankFactors:
        published = self._published.modules[name]
        terms = [Term(weight=1.0, factors=published)]
        terms += [
            Term(weight=term.weight / self._weight, factors=term.factors)
            for term in self._terms[name]
        ]
        terms += [
            Term(weight=-weight / self._weight, factors=held_directions(start.modules[name]))
            for weight, start in self._starts.values()
        ]
        b, a = stack(terms)
        return without_rounding(decompose(b, a)).balanced()
