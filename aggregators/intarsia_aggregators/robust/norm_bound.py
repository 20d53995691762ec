"""A bound on the norm of what each client adds (norm thresholding).

With ``D_i`` what client i added and ``C`` the bound:

    c_i = min(1, C / |D_i|)

``C`` is given, or the median of the round's norms; an even number of clients takes the lower of the
two in the middle. The norm is of the *products*, all modules and the head together, so that neither
the gauge (c B, A / c) nor spreading over modules evades it.

Assumption: none on how many clients are dishonest, where ``C`` is given; with the median, that at
least half are honest, or it is theirs to choose.

Formal guarantee: what the clients together add to the global adapter, weighted by shares that sum
to 1, has at most the norm ``C``, and a client of share p moves it by at most ``p C``.

Reference:
    Sun et al., Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963. The median as
    the bound is the quantile 0.5 of Andrew et al., Differentially Private Learning with Adaptive
    Clipping, 2019, arXiv:1905.03871, of each round by itself and without noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from intarsia_client.errors import InputError

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.robust.base import RobustSettings, RuleOutcome, outcome_of
from intarsia_aggregators.robust.geometry import norms_of


def bound_norms(
    updates: Sequence[WeightedUpdate],
    settings: RobustSettings,
    root: WeightedUpdate | None = None,
) -> RuleOutcome:
    """Bound what each client adds; see :class:`intarsia_aggregators.robust.base.Rule`.

    Args:
        updates: The round's admitted updates.
        settings: ``max_norm`` is the bound, 0 for the median.
        root: Not used.

    Returns:
        All updates with their weights; factors of at most 1 times those that they came with. Each
        score is the bound over the client's norm, infinite for norm 0.

    Raises:
        InputError: If ``max_norm`` is negative or no number, or an update cannot be.
    """
    del root
    if not settings.max_norm >= 0.0:
        raise InputError("robust.max_norm", settings.max_norm, "give a number of at least 0")
    norms = norms_of(updates)
    bound = settings.max_norm or float(np.quantile(norms, 0.5, method="lower"))
    room = [bound / norm if norm > 0.0 else float("inf") for norm in norms]
    return outcome_of(
        updates,
        weights=[one.weight for one in updates],
        factors=[min(1.0, share) for share in room],
        norms=norms,
        scores=room,
        measures={"bound": bound},
    )
