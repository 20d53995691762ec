"""What one row of a batch is answered with: no adapter, one, or several with weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

from intarsia_client.errors import InputError
from intarsia_continual.layerwise import ROUTERS

from intarsia_platform.serving.banked_adapter import BankedAdapter

Mixture = tuple[tuple[BankedAdapter, float], ...]
"""Adapters and their weights; empty for the base alone.

The row computes ``W x + sum_i weight_i scaling_i B_i A_i x`` in every layer: exactly the sum of the
weighted updates, as PEFT's ``combination_type="cat"`` gives it. A classification head is
``H + sum_i weight_i (H_i - H)`` with the base's head H, so that one adapter of weight 1 answers
with its own head.
"""


class Routed(tuple[tuple[BankedAdapter, float], ...]):
    """A mixture in which each module decides for each token how much it takes of which adapter.

    A row then computes ``W x + sum_i gate_i(x) scaling_i B_i A_i x``, the gates those of
    :mod:`intarsia_continual.layerwise`; the weights stand for nothing.
    """

    routing: str
    """The router, one of :data:`intarsia_continual.layerwise.ROUTERS`."""


MixtureKey = tuple[tuple[str, float], ...]
"""Digests and weights: equal keys mean equal mixtures."""

BASE: Mixture = ()
"""The base alone."""


def mixture_of(parts: Iterable[tuple[BankedAdapter, float]], routing: str = "") -> Mixture:
    """Make a mixture.

    Args:
        parts: Adapters, each at most once, and their weights.
        routing: Which router divides each token among them, layer by layer; empty for the weights.

    Returns:
        The mixture, ordered by digest, so that the order of choice does not change a bit of what
        is computed; adapters of weight 0 are left out. Of several with a router a :class:`Routed`.

    Raises:
        InputError: If a weight is not finite, an adapter comes twice, or there is no such router.
    """
    chosen = sorted(parts, key=lambda part: part[0].digest)
    digests = [adapter.digest for adapter, _ in chosen]
    for adapter, weight in chosen:
        if not math.isfinite(weight):
            raise InputError(f"weight of {adapter.digest}", weight, "give a finite number")
    if len(set(digests)) < len(digests):
        raise InputError("mixture", digests, "name each adapter once")
    if routing and routing not in ROUTERS:
        raise InputError("routing", routing, f"choose one of {', '.join(ROUTERS)}")
    mixture = tuple((adapter, float(weight)) for adapter, weight in chosen if weight)
    # Every gate of a single adapter is 1, and the base alone has none.
    if not routing or len(mixture) < 2:
        return mixture
    routed = Routed(mixture)
    routed.routing = routing
    return routed


def mixture_key(mixture: Mixture) -> MixtureKey:
    """The key of a mixture.

    Args:
        mixture: The mixture.

    Returns:
        Digests and weights in the mixture's order.
    """
    return tuple((adapter.digest, weight) for adapter, weight in mixture)
