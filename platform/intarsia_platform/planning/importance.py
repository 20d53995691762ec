"""What a direction of a module is worth: its share of the global adapter's energy.

FedPipe chooses weights by what they contribute, read from the singular values of their adapters
(Fang et al. 2024, arXiv:2404.06448). The server has the singular values of the whole federation's
adapter at hand, so nothing needs to be measured at clients and nothing of theirs is revealed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from intarsia_aggregators.factors import Term, decompose, stack
from intarsia_client.wire import Adapter
from numpy.typing import NDArray

LARGEST_RANK = 64
"""No client is given a larger rank."""

DECAY = 1.5
"""Expected energy of a module's j-th direction before anything is known: ``j ** -DECAY``."""

PRIOR_SHARE = 0.1
"""Share of the expectation that stays with the prior once there is a spectrum."""

Energy = NDArray[np.float64]


def expected_energy(
    shapes: Mapping[str, tuple[int, int]], published: Adapter | None
) -> dict[str, Energy]:
    """How much energy each direction of each module is expected to hold.

    With a published adapter it is ``(1 - PRIOR_SHARE)`` times the adapter's own distribution of
    squared singular values plus ``PRIOR_SHARE`` times the prior, which is equal for all modules.
    The prior keeps a module that nobody has trained yet from being passed over for ever.

    Args:
        shapes: From each module's full name to its (d_out, d_in).
        published: The global adapter so far; None, or one that adds nothing, before round 1.

    Returns:
        From each module's name to its directions' shares, largest first, shape
        (min(d_out, d_in, :data:`LARGEST_RANK`),), float64. All of them together sum to 1, but for
        what the adapter holds beyond :data:`LARGEST_RANK` directions.
    """
    prior = {
        name: np.arange(1, min(*shape, LARGEST_RANK) + 1, dtype=np.float64) ** -DECAY
        for name, shape in shapes.items()
    }
    whole = sum(float(values.sum()) for values in prior.values())
    prior = {name: values / whole for name, values in prior.items()}
    spectrum = {} if published is None else _spectrum(shapes, published)
    total = sum(float(values.sum()) for values in spectrum.values())
    if not total > 0.0:
        return prior
    blended = {}
    for name, values in prior.items():
        seen = np.zeros_like(values)
        held = spectrum[name][: len(seen)]
        seen[: len(held)] = held / total
        blended[name] = (1.0 - PRIOR_SHARE) * seen + PRIOR_SHARE * values
    return blended


def _spectrum(shapes: Mapping[str, tuple[int, int]], adapter: Adapter) -> dict[str, Energy]:
    """Each module's squared singular values, largest first; one module at a time in memory."""
    squares = {}
    for name in shapes:
        factors = adapter.modules[name]
        values = np.zeros(0)
        if factors.rank:
            sigma = decompose(*stack([Term(weight=1.0, factors=factors)])).sigma
            values = np.asarray(sigma.square().numpy(), dtype=np.float64)
        squares[name] = values
    return squares
