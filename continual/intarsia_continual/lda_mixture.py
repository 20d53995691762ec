"""The retriever that AdapterSwap describes: discriminant analysis, then a Gaussian mixture.

For studies only. Both parts are fitted over all groups together: the discriminant directions
separate every group from every other, and the mixture's components share out all documents. So
what one person is answered with depends on groups that this person may not see, it changes when
such a group comes or goes, and a deleted document stays in the fit until all groups are fitted
again. Nothing that serves may import this module; docs/retrieval.md measures what it costs not to.

The paper is read as follows, since no code was found: linear discriminant analysis of sentence
embeddings to (groups - 1) dimensions; a mixture of as many Gaussians as groups, begun at the
groups' means; a query's score for a group is the probability of its components times the share of
each component's training documents that are the group's.

Reference:
    Fleshman et al., AdapterSwap: Continuous Training of LLMs with Data Removal and Access-Control
    Guarantees, 2024, arXiv:2404.08417.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
)
from sklearn.mixture import GaussianMixture

from intarsia_continual.descriptors.base import Float64Array, unit_rows


@dataclass(frozen=True, kw_only=True)
class LdaMixture:
    """A retriever over a fixed set of groups.

    Args:
        names: The groups, sorted.
        discriminant: The fitted discriminant analysis.
        mixture: The fitted mixture.
        shares: Shape (components, groups): whose documents each component holds; rows sum to 1.
    """

    names: tuple[str, ...]
    discriminant: Any
    mixture: Any
    shares: Float64Array

    def probabilities(self, queries: FloatArray) -> Float64Array:
        """How probable each group is for each query.

        Args:
            queries: Shape (n, width).

        Returns:
            Shape (n, groups), in the order of ``names``; rows sum to 1.
        """
        reduced = self.discriminant.transform(unit_rows(queries))
        found: Float64Array = self.mixture.predict_proba(reduced) @ self.shares
        return found


def fit_lda_mixture(embeddings: Mapping[str, FloatArray], *, seed: int = 0) -> LdaMixture:
    """Fit the joint retriever.

    Args:
        embeddings: From each group's name to its documents' vectors, shape (n, width); at least
            two groups.
        seed: Of the mixture.

    Returns:
        The retriever.

    Raises:
        InputError: If there are fewer than two groups.
    """
    names = tuple(sorted(embeddings))
    if len(names) < 2:
        raise InputError("groups", len(names), "give at least two")
    rows = unit_rows(np.concatenate([embeddings[name] for name in names]))
    groups = np.repeat(np.arange(len(names)), [len(embeddings[name]) for name in names])
    # Shrinkage, since there may be fewer documents than dimensions.
    discriminant = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    reduced = discriminant.fit(rows, groups).transform(rows)
    means = np.stack([reduced[groups == group].mean(axis=0) for group in range(len(names))])
    mixture = GaussianMixture(
        len(names), means_init=means, reg_covar=1e-4, max_iter=200, random_state=seed
    ).fit(reduced)
    members = np.eye(len(names))[groups]
    held = mixture.predict_proba(reduced).T @ members
    totals = held.sum(axis=1, keepdims=True)
    even = np.full_like(held, 1 / len(names))
    shares = np.where(totals > 0, held / np.where(totals > 0, totals, 1.0), even)
    return LdaMixture(names=names, discriminant=discriminant, mixture=mixture, shares=shares)
