"""Multi-Krum: only the updates whose nearest neighbours are near count.

With n updates and f assumed dishonest, an update's score is the sum of its squared distances to its
n - f - 2 nearest others. The n - f of the lowest scores are kept, with their weights; equal scores
are told apart by the clients' names. The paper leaves open how many to keep: of n - f, none is an
honest client's loss where nobody attacks from afar.

Assumption: n > 2 f + 2, and honest clients' updates are alike. Where data differ between honest
clients, those furthest from the others are left out as if they attacked.

Formal guarantee: if at most f clients are dishonest and any two honest updates are at most d apart,
every kept update is within ``d sqrt((n - f - 2) / (n - 2 f - 1))`` of an honest one. (Were a
dishonest update kept, an honest one would be left out whose score, at most (n - f - 2) d^2, is not
lower; of the n - f - 2 neighbours that it sums over, at least n - 2 f - 1 are honest.)

Reference:
    Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017,
    arXiv:1703.02757. El Mhamdi et al., Fast and Robust Distributed Learning in High Dimension,
    2019, arXiv:1905.04374, is about how many may be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from intarsia_client.errors import InputError

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.gram import distances, norms
from intarsia_aggregators.robust.base import RobustSettings, RuleOutcome, outcome_of
from intarsia_aggregators.robust.geometry import check_updates, gram_matrix


def fewest_updates(settings: RobustSettings) -> int:
    """The fewest updates that Multi-Krum takes.

    Args:
        settings: ``byzantine`` is f.

    Returns:
        ``2 f + 3``.

    Raises:
        InputError: If f is negative.
    """
    if settings.byzantine < 0:
        raise InputError("robust.byzantine", settings.byzantine, "give a number of at least 0")
    return 2 * settings.byzantine + 3


def multi_krum(
    updates: Sequence[WeightedUpdate],
    settings: RobustSettings,
    root: WeightedUpdate | None = None,
) -> RuleOutcome:
    """Keep the updates of the lowest scores; see :class:`intarsia_aggregators.robust.base.Rule`.

    Args:
        updates: The round's admitted updates.
        settings: ``byzantine`` is f.
        root: Not used.

    Returns:
        The n - f kept updates, as they came. Each score is Krum's, a squared norm.

    Raises:
        InputError: If n is at most 2 f + 2, or an update cannot be.
    """
    del root
    count, assumed = len(updates), settings.byzantine
    needed = fewest_updates(settings)
    check_updates(updates)
    if count < needed:
        raise InputError(
            "updates for multi-krum",
            count,
            f"bring at least {needed} for robust.byzantine = {assumed}, or assume fewer",
        )
    gram = gram_matrix(updates)
    # The update itself is its own nearest, at distance 0.
    nearest = np.sort(np.square(distances(gram).numpy()), axis=1)[:, 1 : count - assumed - 1]
    scores = nearest.sum(axis=1)
    ordered = sorted(range(count), key=lambda index: (scores[index], updates[index].client))
    kept = set(ordered[: count - assumed])
    return outcome_of(
        updates,
        weights=[one.weight if index in kept else 0.0 for index, one in enumerate(updates)],
        factors=[1.0] * count,
        norms=norms(gram).numpy(),
        scores=scores,
        measures={"kept": float(len(kept))},
    )
