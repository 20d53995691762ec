"""A Gaussian for each adapter, its covariance shrunk to a multiple of the identity.

    C = (1 - p) S + p mu I,    s(q) = log N(q; m, C) / width

m and S are the mean and covariance of the adapter's own documents, mu the mean of S's eigenvalues,
and p what minimises the expected squared error if the documents are Gaussian (oracle approximating
shrinkage). At most 150 eigenvectors are kept; the others share the mean of their eigenvalues, as in
probabilistic principal component analysis. Nothing is drawn at random.

References:
    Chen, Wiesel, Eldar and Hero, Shrinkage Algorithms for MMSE Covariance Estimation, 2010,
    arXiv:0907.4698 (without the terms 2 / width, as scikit-learn's OAS has it).
    Tipping and Bishop, Probabilistic Principal Component Analysis, 1999,
    doi:10.1111/1467-9868.00196.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from intarsia_client.wire import FloatArray

from intarsia_continual.descriptors.base import DescriptorMethod, Float64Array

DIRECTIONS = 150

# The variances of vectors of length 1 sum to at most 1. Where an adapter's texts are all the same,
# a thousandth of an even share keeps the density finite.
_LEAST = 1e-3


def _shrunk_covariance(rows: FloatArray, _: np.random.Generator) -> Mapping[str, FloatArray]:
    count, width = rows.shape
    exact = rows.astype(np.float64)
    mean = exact.mean(axis=0)
    singular, directions = np.linalg.svd(exact - mean, full_matrices=False)[1:]
    variances = np.zeros(width)
    variances[: len(singular)] = singular**2 / count
    least = _LEAST / width
    shrunk = np.maximum(_shrinkage(variances, count) @ [variances, np.ones(width)], least)
    kept = min(DIRECTIONS, len(singular), width)
    rest = shrunk[kept:].mean() if kept < width else least
    return {
        "mean": mean.astype(np.float32),
        "directions": directions[:kept].astype(np.float32),
        "variances": shrunk[:kept].astype(np.float32),
        "rest": np.array([rest], dtype=np.float32),
    }


def _shrinkage(variances: Float64Array, count: int) -> Float64Array:
    """What a covariance and the identity count for, from its eigenvalues."""
    width = len(variances)
    mu = variances.mean()
    # The mean square of the matrix's entries.
    alpha = (variances**2).sum() / width**2
    denominator = (count + 1) * (alpha - mu**2 / width)
    share = 1.0 if denominator == 0 else min(1.0, (alpha + mu**2) / denominator)
    return np.array([1.0 - share, share * mu])


def _log_density(arrays: Mapping[str, FloatArray], queries: Float64Array) -> Float64Array:
    mean, directions, variances, rest = (
        arrays[name].astype(np.float64) for name in ("mean", "directions", "variances", "rest")
    )
    # What bytes from elsewhere hold may be no variance.
    variances, rest = (np.maximum(one, _LEAST / len(mean)) for one in (variances, rest))
    differences = queries - mean
    along = differences @ directions.T
    squares = (differences**2).sum(axis=1) / rest + along**2 @ (1 / variances - 1 / rest)
    others = len(mean) - len(variances)
    logarithms = np.log(variances).sum() + others * np.log(rest[0])
    density: Float64Array = -0.5 * (squares + logarithms + len(mean) * np.log(2 * np.pi))
    return density / len(mean)


GAUSSIAN = DescriptorMethod(
    name="gaussian",
    layout={
        "mean": ("width",),
        "directions": ("rank", "width"),
        "variances": ("rank",),
        "rest": ("one",),
    },
    summarise=_shrunk_covariance,
    compare=_log_density,
)
