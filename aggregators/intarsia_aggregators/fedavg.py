"""The weighted mean, for whole tensors: a classification head (FedAvg).

A head is no low-rank product; it travels whole. With H the head that was published, H_i what
client i sent, p_i the shares that sum to 1 and c_i the factors,

    H' = H + sum_i p_i c_i (H_i - H)

which is the weighted mean of the H_i where every factor is 1. Every method averages heads so; the
method ``fedavg`` does nothing else, and leaves the low-rank factors as they were.

Formal guarantee: the float64 sum, rounded once to float32.

Reference:
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
    2017, arXiv:1602.05629.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from intarsia_client.wire import FloatArray
from numpy.typing import NDArray

from intarsia_aggregators.base import ModuleOutcome, ModuleRound, WeightedUpdate


def keep_factors(module: ModuleRound) -> ModuleOutcome:
    """Leave a module as it is.

    Args:
        module: What the round brought.

    Returns:
        The module, unchanged.
    """
    return ModuleOutcome(exact=module.exact)


def average_heads(
    heads: Mapping[str, FloatArray], updates: Sequence[WeightedUpdate], shares: Sequence[float]
) -> dict[str, FloatArray]:
    """Weighted mean of the dense tensors that clients sent.

    Args:
        heads: The tensors that the server has.
        updates: The updates, each with all of these tensors in its start and its trained adapter.
        shares: One share each, summing to 1.

    Returns:
        The new tensors, by name in sorted order.
    """
    averaged: dict[str, FloatArray] = {}
    for name in sorted(heads):
        total = heads[name].astype(np.float64)
        for update, share in zip(updates, shares, strict=True):
            sent = update.trained.dense[name].astype(np.float64)
            total += (share * update.factor) * (sent - update.start.dense[name])
        averaged[name] = total.astype(np.float32)
    return averaged


def weighted_sum(
    shape: tuple[int, int], parts: Iterable[tuple[float, NDArray[np.floating]]]
) -> NDArray[np.float64]:
    """Weighted sum of matrices in float64, smaller ones padded with zeros.

    Args:
        shape: Shape (rows, columns) of the sum.
        parts: Weights and matrices of at most that many rows and columns.

    Returns:
        The sum.
    """
    total = np.zeros(shape, dtype=np.float64)
    for weight, part in parts:
        rows, columns = part.shape
        total[:rows, :columns] += weight * part.astype(np.float64)
    return total
