"""FLTrust: each client counts by how far it goes where the server's own records go.

With ``D_0`` what the server itself added, trained on clean records of its own from the same start:

    weight_i = max(0, cos(D_i, D_0)),        c_i = |D_0| / |D_i|

so that declared numbers of records do not count, nothing that points away counts, and everything
that counts has the length of the server's own update. Factors above 1 are possible: a client that
moved little is drawn out to that length. Below 1e-4 of it a client counts as having added nothing:
what it was sent, drawn out by more, would show its rounding.

Assumption: the server's records are clean and of the clients' task. Any number of clients may be
dishonest.

Formal guarantee: what the clients together add has at most the norm of ``D_0`` and no negative
inner product with it. Where nobody points the server's way, nothing is added.

Reference:
    Cao et al., FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, 2020,
    arXiv:2012.13995.
"""

from __future__ import annotations

from collections.abc import Sequence

from intarsia_client.errors import InputError

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.gram import norms
from intarsia_aggregators.robust.base import RobustSettings, RuleOutcome, outcome_of
from intarsia_aggregators.robust.geometry import check_updates, gram_matrix

_LEAST = 1e-4
"""Share of the server's norm below which a client added nothing."""


def trust_by_root(
    updates: Sequence[WeightedUpdate],
    settings: RobustSettings,
    root: WeightedUpdate | None = None,
) -> RuleOutcome:
    """Weigh by the server's own update; see :class:`intarsia_aggregators.robust.base.Rule`.

    Args:
        updates: The round's admitted updates.
        settings: Not used.
        root: The server's own update; it is not among those that are returned.

    Returns:
        The updates that point the server's way; all of them with weight as it came and factor 0
        where none does. Each score is the cosine, 0 for what added nothing.

    Raises:
        InputError: If there is no root, it added nothing, a client has its name, or an update
            cannot be.
    """
    del settings
    check_updates(updates)
    if root is None:
        raise InputError("root update", "none", "train one on the server's own records")
    gram = gram_matrix([*updates, root])
    *lengths, length = norms(gram).tolist()
    if length == 0.0:
        raise InputError("root update", "added nothing", "train it on the server's own records")
    cosines = [
        inner / norm / length if norm > _LEAST * length else 0.0
        for inner, norm in zip(gram[-1, :-1].tolist(), lengths, strict=True)
    ]
    trusted = [max(0.0, cosine) for cosine in cosines]
    if any(trusted):
        factors = [length / norm if norm > _LEAST * length else 1.0 for norm in lengths]
    else:
        trusted, factors = [one.weight for one in updates], [0.0] * len(updates)
    return outcome_of(
        updates,
        weights=trusted,
        factors=factors,
        norms=lengths,
        scores=cosines,
        measures={"root_norm": length},
    )
