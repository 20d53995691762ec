"""How learning group after group went: what is kept, what is lost, what is gained beforehand.

All of it is read off one matrix R: entry (t, i) is how good the learner is on group i after the
first t + 1 groups have come, groups in the order of their coming, larger being better. Give the
accuracy, or the log-likelihood of a token (a loss with its sign turned round).

Reference:
    Lopez-Paz and Ranzato 2017, Gradient Episodic Memory for Continual Learning, arXiv:1706.08840;
    Chaudhry et al. 2018, Riemannian Walk for Incremental Learning, arXiv:1801.10112.
"""

from __future__ import annotations

import numpy as np
from intarsia_client.errors import InputError
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def average_at_end(results: ArrayLike) -> float:
    """The mean over all groups after the last has come: ``1/T sum_i R[T, i]``.

    Args:
        results: Shape (T, T).

    Returns:
        The mean, in the measure's units.

    Raises:
        InputError: If the matrix is not square, or the last row is not finite.
    """
    return float(_finite(_square(results, 1)[-1]).mean())


def averages_over_arrivals(results: ArrayLike) -> Matrix:
    """After each arrival the mean over the groups that have come: ``1/t sum_{i<=t} R[t, i]``.

    Args:
        results: Shape (T, T); entries above the diagonal are not looked at.

    Returns:
        Shape (T,), in the measure's units; the last is :func:`average_at_end`.

    Raises:
        InputError: If the matrix is not square, or an entry that counts is not finite.
    """
    matrix = _square(results, 1)
    means = [_finite(row[: place + 1]).mean() for place, row in enumerate(matrix)]
    return np.array(means, dtype=np.float64)


def backward_transfer(results: ArrayLike) -> float:
    """What later groups did to earlier ones: ``1/(T-1) sum_{i<T} (R[T, i] - R[i, i])``.

    Negative for forgetting, 0 where an earlier group is answered as well as when it came.

    Args:
        results: Shape (T, T), T at least 2; the diagonal and the last row are looked at.

    Returns:
        The mean change, in the measure's units.

    Raises:
        InputError: If the matrix is not square or too small, or an entry that counts is not finite.
    """
    matrix = _square(results, 2)
    changes = _finite(matrix[-1, :-1]) - _finite(np.diagonal(matrix)[:-1])
    return float(changes.mean())


def forward_transfer(results: ArrayLike, before: ArrayLike) -> float:
    """What earlier groups did for ones to come: ``1/(T-1) sum_{i>1} (R[i-1, i] - b[i])``.

    Args:
        results: Shape (T, T), T at least 2; the entries right above the diagonal are looked at.
        before: How good the learner is on each group before any has come, shape (T,).

    Returns:
        The mean gain, in the measure's units.

    Raises:
        InputError: If the shapes do not fit, or an entry that counts is not finite.
    """
    matrix = _square(results, 2)
    start = np.asarray(before, dtype=np.float64)
    if start.shape != (len(matrix),):
        raise InputError("measures before", f"shape {start.shape}", f"give {len(matrix)} of them")
    return float((_finite(np.diagonal(matrix, offset=1)) - _finite(start[1:])).mean())


def forgetting(results: ArrayLike) -> float:
    """How far groups fell from their best: ``1/(T-1) sum_{i<T} (max_{i<=t<T} R[t, i] - R[T, i])``.

    Chaudhry et al.'s measure. It is at least minus :func:`backward_transfer`, and negative only
    where groups were better at the end than ever before.

    Args:
        results: Shape (T, T), T at least 2; entries above the diagonal are not looked at.

    Returns:
        The mean fall, in the measure's units.

    Raises:
        InputError: If the matrix is not square or too small, or an entry that counts is not finite.
    """
    matrix = _square(results, 2)
    last = len(matrix) - 1
    best = [_finite(matrix[place:last, place]).max() for place in range(last)]
    return float((np.array(best) - _finite(matrix[last, :last])).mean())


def _square(results: ArrayLike, least: int) -> Matrix:
    matrix: Matrix = np.asarray(results, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < least:
        raise InputError(
            "matrix of results",
            f"shape {matrix.shape}",
            f"give a row for each arrival and a column for each group, at least {least} of them",
        )
    return matrix


def _finite(values: Matrix) -> Matrix:
    if not np.isfinite(values).all():
        raise InputError("matrix of results", "not finite", "measure every group that counts")
    return values
