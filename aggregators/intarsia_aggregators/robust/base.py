"""What a robust rule is: updates in, the same updates with other weights and factors out.

A rule looks at what each client *added*, ``D_i = factor_i (s_i B_i A_i - S_i)`` over all modules
together and the head's difference beside them, by inner products alone (see
:mod:`intarsia_aggregators.robust.geometry`). What comes out goes into any method that adds up what
clients added, so that a rule combines with the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from intarsia_aggregators.base import WeightedUpdate

_Numbers = Sequence[float] | NDArray[np.float64]

KEPT, BOUNDED, REWEIGHED, LEFT_OUT = "kept", "bounded", "reweighed", "left-out"
"""What may become of an update."""


@dataclass(frozen=True, kw_only=True)
class RobustSettings:
    """What a rule assumes of a round.

    Args:
        max_norm: Bound on the Frobenius norm of what one client adds, for ``norm-bound``; 0 for
            the median of the round's norms.
        byzantine: How many of a round's clients are assumed dishonest, for ``multi-krum``.
    """

    max_norm: float = 0.0
    byzantine: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a rule did to one client's update.

    Args:
        client: The client's name.
        outcome: One of :data:`KEPT`, :data:`BOUNDED`, :data:`REWEIGHED` and :data:`LEFT_OUT`.
        norm: Frobenius norm of what the client added.
        score: What the rule judged by: the bound over the norm, Krum's score, the distance from
            the median, or the cosine to the server's own update.
        share_before: The client's share of the cohort's weight as it came, between 0 and 1.
        share: The same as it goes, 0 where it was left out.
        factor: What multiplies what the client added, as it goes.
    """

    client: str
    outcome: str
    norm: float
    score: float
    share_before: float
    share: float
    factor: float


@dataclass(frozen=True, kw_only=True)
class RuleOutcome:
    """What a rule made of a round.

    Args:
        updates: The updates to aggregate, in the order in which they came; never empty.
        decisions: One for each update that came, in that order, those left out included.
        measures: Numbers about the rule itself, such as the bound or the iterations it took.
    """

    updates: tuple[WeightedUpdate, ...]
    decisions: tuple[Decision, ...]
    measures: Mapping[str, float] = field(default_factory=dict)


class Rule(Protocol):
    """Judges the updates of one round."""

    def __call__(
        self,
        updates: Sequence[WeightedUpdate],
        settings: RobustSettings,
        root: WeightedUpdate | None = None,
    ) -> RuleOutcome:
        """Judge.

        Args:
            updates: The round's admitted updates, each client once; their modules are read one at
                a time. The outcome depends on their order only by rounding.
            settings: What to assume.
            root: The server's own update of this round, trained on its own records from the same
                published adapter; for rules that need it.

        Returns:
            The updates to aggregate and what was done to whom; equal inputs give equal bytes.

        Raises:
            InputError: If there are too few updates for the rule, one of them cannot be, or what
                the rule needs is missing.
        """


def outcome_of(
    updates: Sequence[WeightedUpdate],
    *,
    weights: _Numbers,
    factors: _Numbers,
    norms: _Numbers,
    scores: _Numbers,
    measures: Mapping[str, float],
) -> RuleOutcome:
    """Put new weights and factors on updates, and say what was done.

    Args:
        updates: The updates as they came.
        weights: One an update, in the scale of those that came or another; 0 leaves it out. At
            least one is positive.
        factors: One an update, which multiplies the factor that it came with.
        norms: One an update: see :class:`Decision`.
        scores: Likewise.
        measures: See :class:`RuleOutcome`.

    Returns:
        The outcome.
    """
    before = math.fsum(update.weight for update in updates)
    after = math.fsum(weights)
    kept, decisions = [], []
    for index, update in enumerate(updates):
        weight, factor = float(weights[index]), float(factors[index])
        changed = replace(update, weight=weight, factor=update.factor * factor)
        if weight > 0.0:
            kept.append(changed)
        share_before, share = update.weight / before, weight / after
        decisions.append(
            Decision(
                client=update.client,
                outcome=_outcome(share_before, share, factor),
                norm=float(norms[index]),
                score=float(scores[index]),
                share_before=share_before,
                share=share,
                factor=changed.factor,
            )
        )
    return RuleOutcome(updates=tuple(kept), decisions=tuple(decisions), measures=dict(measures))


def _outcome(share_before: float, share: float, factor: float) -> str:
    """The word for what was done; other clients' leaving alone is no reweighing."""
    if share == 0.0 or factor == 0.0:
        return LEFT_OUT
    if factor < 1.0:
        return BOUNDED
    return KEPT if share >= share_before and factor == 1.0 else REWEIGHED
