"""The ledger: an exact weighted sum of what clients added, kept in factors; a bounded broadcast.

With G what the server keeps of a module, s_i B_i A_i what client i sent, S_i the start that it was
given, shares p_i that sum to 1 over the cohort, and factors c_i (1 unless a robust rule bounds the
client):

    G' = G + sum_i p_i c_i (s_i B_i A_i - S_i)

so a round in which nobody trains leaves G as it is, whatever the ranks: averaging the full adapters
instead would shrink direction j by the weight of the clients that hold it. The sum is formed per
module as one product of stacked factors (Wang et al. 2024) and decomposed in float64.

Kept are the leading ``broadcast_rank + residual_rank`` directions. Published are the leading
``broadcast_rank`` of them, balanced by the square root of the singular values: a download that does
not grow with the clients or the rounds. What is held back stays in G, and comes out as soon as it
is among the leading directions. The starts are those of what clients *really* were sent: where the
way to them rounded the broadcast, the difference stays in G too (error feedback; Seide et al. 2014
for gradients).

Most starts need no room in the stack. They are directions of what was published, so they share
their rows of A with each other, and with G where nothing was rounded; terms of the same rows are
added up in B.

Formal guarantee: per module, the relative Frobenius error of G' against the dense sum in float64 is
at most 1e-6 (float32 rounding of the factors and a cut below 1e-8 of the norm) plus the share that
``residual_rank`` cuts, which is reported.

Reference:
    Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations, 2024, arXiv:2409.05976, for the stack.
    Seide et al., 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
    Distributed Training of Speech DNNs, Interspeech 2014, for error feedback.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from intarsia_client.start import held_directions
from intarsia_client.wire import FloatArray, LowRankFactors
from numpy.typing import NDArray

from intarsia_aggregators.base import ModuleOutcome, ModuleRound
from intarsia_aggregators.factors import Decomposition, decompose, truncated, without_rounding

# Of terms that cancel, float64 leaves this share of the largest.
_CANCELLED = 1e-14

# Entries of a row by which it is looked up.
_KEY_LENGTH = 8


def add_exactly(module: ModuleRound) -> ModuleOutcome:
    """Add what one module's clients added, and take from it what is published.

    Args:
        module: What the round brought.

    Returns:
        The module with balanced factors of scaling 1, directions largest first.
    """
    whole = without_rounding(new_sum(module).decomposed())
    squares = whole.sigma.square()
    bound = module.settings.broadcast_rank
    kept = bound + module.settings.residual_rank if bound else len(squares)
    exact = truncated(whole, kept).balanced()
    return ModuleOutcome(
        exact=exact,
        published=leading(exact, bound) if 0 < bound < exact.rank else None,
        energy=float(squares.sum()),
        cut=float(squares[kept:].sum()),
        held_back=float(squares[bound:kept].sum()) if bound else 0.0,
    )


def new_sum(module: ModuleRound) -> StackedSum:
    """What the server has and what clients added to their starts.

    Args:
        module: What the round brought.

    Returns:
        The sum.
    """
    total = StackedSum(module.published.shape)
    total.add(1.0, module.exact)
    # Adds nothing; every start then finds its rows, whichever of them it has.
    total.add(0.0, module.published)
    for one in module.contributions:
        total.add(one.weight, one.trained)
        # Fresh directions of a start add nothing, and would only take room.
        total.add(-one.weight, held_directions(one.start))
    return total


def leading(factors: LowRankFactors, rank: int) -> LowRankFactors:
    """The first directions of a module, without a copy.

    Args:
        factors: The module's factors.
        rank: How many directions to take, at least 0.

    Returns:
        The first ``rank`` directions, or all where there are fewer.
    """
    return LowRankFactors(a=factors.a[:rank], b=factors.b[:, :rank], scaling=factors.scaling)


@dataclass
class _Block:
    """Directions of which each has its row of A once; ``b`` sums their columns in float64."""

    a: FloatArray
    b: NDArray[np.float64]
    places: dict[bytes, int]


class StackedSum:
    """A weighted sum of products as one stack, in which terms of the same rows of A are added up.

    Args:
        shape: The module's (d_out, d_in).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._blocks: list[_Block] = []
        self._with_row: defaultdict[bytes, list[_Block]] = defaultdict(list)

    def add(self, weight: float, factors: LowRankFactors) -> None:
        """Add one term.

        Args:
            weight: A finite number of either sign.
            factors: The term's factors and scaling.
        """
        if factors.rank == 0:
            return
        b = (weight * factors.scaling) * factors.b.astype(np.float64)
        keys = [_key(row) for row in factors.a]
        for block in self._with_row[keys[0]]:
            places = [block.places.get(key, -1) for key in keys]
            # A row that comes twice has one place only.
            found = min(places) >= 0 and len(set(places)) == len(places)
            if found and np.array_equal(block.a[places], factors.a):
                block.b[:, places] += b
                return
        block = _Block(a=factors.a, b=b, places={key: place for place, key in enumerate(keys)})
        self._blocks.append(block)
        for key in block.places:
            self._with_row[key].append(block)

    def decomposed(self) -> Decomposition:
        """The sum's singular value decomposition.

        Returns:
            The decomposition, nothing cut; rank 0 for a sum without terms.
        """
        d_out, d_in = self._shape
        b = np.concatenate([np.zeros((d_out, 0)), *(block.b for block in self._blocks)], axis=1)
        a = np.concatenate([np.zeros((0, d_in)), *(block.a for block in self._blocks)], axis=0)
        sizes = np.linalg.norm(b, axis=0) * np.linalg.norm(a, axis=1)
        # What every client started from cancels; what is left of it is rounding, and would only
        # spoil the conditioning.
        held = sizes > _CANCELLED * sizes.max(initial=0.0)
        return decompose(torch.from_numpy(b[:, held]), torch.from_numpy(a[held]))


def _key(row: FloatArray) -> bytes:
    """What a row is looked up by; equal rows have equal ones, and equality is checked after."""
    return row[:_KEY_LENGTH].tobytes()
