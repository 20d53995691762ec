"""Inner products of what clients added: over all modules together, and never as dense matrices.

What client i added is one vector: for each module the matrix ``D_i = c_i (s_i B_i A_i - S_i)``, and
beside them the difference of each dense tensor (a head), all with weight 1, since a head's matrix
is a linear layer's like any other. Inner products of matrices in factors need no matrix:

    <B A, B' A'> = sum((B^T B') * (A A'^T))

They do not change under the gauge (c B, A / c), which would fool any rule that looks at factors.
:mod:`intarsia_aggregators.gram` multiplies; here is what to multiply.

Formal guarantee: the relative error of a distance against dense float64 is rounding as long as the
distance is above 1e-7 of the norms. What came back as it went out has norm 0 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from intarsia_client.errors import InputError
from intarsia_client.wire import LowRankFactors
from numpy.typing import NDArray

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.gram import inner_products

FloatMatrix = NDArray[np.float64]

# Directions of one block; two blocks are multiplied at a time. Ten clients of rank 16 are 320.
_DIRECTIONS = 1024

_Pair = tuple[LowRankFactors, LowRankFactors]


def gram_matrix(updates: Sequence[WeightedUpdate]) -> torch.Tensor:
    """Inner products of what each pair of clients added.

    Each update's module is read once, when its turn comes; in memory are one module's factors of
    all updates, two blocks of at most 1,024 directions (or one update's, where it has more) in
    float64, and the result.

    Args:
        updates: Updates of one round, each client once; modules that one lacks count as zero.

    Returns:
        Shape (n, n), float64, symmetric.

    Raises:
        InputError: If there is none, a client comes twice, a weight or a factor cannot be, or
            modules or heads do not fit each other.
    """
    check_updates(updates)
    gram = np.zeros((len(updates), len(updates)))
    for name in dict.fromkeys(name for one in updates for name in one.trained.modules):
        holders = [index for index, one in enumerate(updates) if name in one.trained.modules]
        pairs = [_pair(updates[index], name) for index in holders]
        gram[np.ix_(holders, holders)] += _module_products(name, pairs)
    for name in dict.fromkeys(name for one in updates for name in one.trained.dense):
        rows = _head_rows(updates, name)
        gram += rows @ rows.T
    factors = np.array([one.factor for one in updates])
    gram *= np.outer(factors, factors)
    _check_finite(updates, np.diagonal(gram))
    return torch.from_numpy(gram)


def norms_of(updates: Sequence[WeightedUpdate]) -> FloatMatrix:
    """Frobenius norms of what each client added; only one module of one update is in memory.

    Args:
        updates: As in :func:`gram_matrix`.

    Returns:
        Shape (n,), float64.

    Raises:
        InputError: As :func:`gram_matrix`.
    """
    check_updates(updates)
    squares = np.zeros(len(updates))
    for name in dict.fromkeys(name for one in updates for name in one.trained.modules):
        for index, one in enumerate(updates):
            if name in one.trained.modules:
                squares[index] += float(_module_products(name, [_pair(one, name)])[0, 0])
    for name in dict.fromkeys(name for one in updates for name in one.trained.dense):
        squares += np.square(_head_rows(updates, name)).sum(axis=1)
    norms = np.sqrt(np.maximum(squares, 0.0)) * np.array([one.factor for one in updates])
    _check_finite(updates, norms)
    return np.asarray(norms)


def check_updates(updates: Sequence[WeightedUpdate]) -> None:
    """Refuse what no rule can judge.

    Args:
        updates: Updates of one round.

    Raises:
        InputError: If there is none, a client comes twice, or a weight or a factor cannot be.
    """
    if not updates:
        raise InputError("updates to judge", 0, "admit at least one update")
    seen: set[str] = set()
    for one in updates:
        if not one.weight > 0.0 or not math.isfinite(one.weight):
            raise InputError(f"weight of {one.client}", one.weight, "give a positive number")
        if not one.factor >= 0.0 or not math.isfinite(one.factor):
            raise InputError(f"factor of {one.client}", one.factor, "give a number of at least 0")
        if one.client in seen:
            raise InputError(f"update of {one.client}", "comes twice", "count each client once")
        seen.add(one.client)


def _pair(update: WeightedUpdate, name: str) -> _Pair:
    if name not in update.start.modules:
        raise InputError(f"modules of {update.client}", name, "train the modules of the start")
    trained, start = update.trained.modules[name], update.start.modules[name]
    if trained.shape != start.shape:
        raise InputError(f"{name} of {update.client}", trained.shape, f"send {start.shape}")
    if not all(np.isfinite(one).all() for one in (trained.a, trained.b, trained.scaling)):
        raise InputError(f"{name} of {update.client}", "not finite", "refuse the update")
    return trained, start


def _module_products(name: str, pairs: Sequence[_Pair]) -> FloatMatrix:
    """Inner products of one module's differences, shape (n, n)."""
    shapes = {trained.shape for trained, _ in pairs}
    if len(shapes) > 1:
        raise InputError(f"shapes of {name}", sorted(shapes), "judge updates of one base model")
    result = np.zeros((len(pairs), len(pairs)))
    blocks = list(_blocks(pairs))
    together = [[*one, *other] for one, other in combinations(blocks, 2)] or blocks
    for members in together:
        result[np.ix_(members, members)] = _products([pairs[member] for member in members])
    return result


def _blocks(pairs: Sequence[_Pair]) -> Iterator[list[int]]:
    """Runs of updates whose directions together are about as many as a block has."""
    block: list[int] = []
    directions = 0
    for index, (trained, start) in enumerate(pairs):
        more = trained.rank + start.rank
        if block and directions + more > _DIRECTIONS:
            yield block
            block, directions = [], 0
        block.append(index)
        directions += more
    yield block


def _products(pairs: Sequence[_Pair]) -> FloatMatrix:
    parts = [_difference(trained, start) for trained, start in pairs]
    b = torch.from_numpy(np.concatenate([b for b, _ in parts], axis=1))
    a = torch.from_numpy(np.concatenate([a for _, a in parts], axis=0))
    ranks = [b.shape[1] for b, _ in parts]
    return np.asarray(inner_products(b, a, b.new_ones(b.shape[1]), ranks).numpy())


def _difference(trained: LowRankFactors, start: LowRankFactors) -> tuple[FloatMatrix, FloatMatrix]:
    """Factors of ``trained - start`` in float64: shapes (d_out, k) and (k, d_in).

    A direction that hardly moved is written as ``(b - b') a + b' (a - a')`` rather than
    ``b a - b' a'``: what is left after subtracting is then not the rounding of what went before.
    Where the gauge makes that the larger of the two, the plain form stays.
    """
    b = trained.scaling * trained.b.astype(np.float64)
    b_start = start.scaling * start.b.astype(np.float64)
    a, a_start = trained.a.astype(np.float64), start.a.astype(np.float64)
    if trained.rank != start.rank:
        return np.concatenate([b, -b_start], axis=1), np.concatenate([a, a_start], axis=0)
    of_b, of_a = np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1)
    of_start = np.linalg.norm(b_start, axis=0)
    moved_b, moved_a = b - b_start, a - a_start
    close = np.linalg.norm(moved_b, axis=0) * of_a + of_start * np.linalg.norm(moved_a, axis=1)
    near = close < of_b * of_a + of_start * np.linalg.norm(a_start, axis=1)
    return (
        np.concatenate([np.where(near, moved_b, b), np.where(near, b_start, -b_start)], axis=1),
        np.concatenate([a, np.where(near[:, None], moved_a, a_start)], axis=0),
    )


def _head_rows(updates: Sequence[WeightedUpdate], name: str) -> FloatMatrix:
    """What each client added to one dense tensor, flat, shape (n, size)."""
    rows = []
    for one in updates:
        if name not in one.trained.dense or name not in one.start.dense:
            raise InputError(f"head of {one.client}", f"{name} is missing", "send the whole head")
        trained, start = one.trained.dense[name], one.start.dense[name]
        if trained.shape != start.shape:
            raise InputError(f"{name} of {one.client}", trained.shape, f"send {start.shape}")
        if not np.isfinite(trained).all():
            raise InputError(f"{name} of {one.client}", "not finite", "refuse the update")
        rows.append((trained.astype(np.float64) - start).ravel())
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"sizes of {name}", "unequal", "judge updates of one base model")
    return np.stack(rows)


def _check_finite(updates: Sequence[WeightedUpdate], squares: FloatMatrix) -> None:
    for one, square in zip(updates, squares, strict=True):
        if not math.isfinite(square):
            raise InputError(f"update of {one.client}", "not finite", "refuse the update")
