"""AdamW's moments of one client between two rounds, in the basis of the new round's start.

Between two rounds the server writes the global adapter in another basis: with an orthogonal R,
(B R^T)(R A) is the same product, and the gradient of R A is R times that of A. So the moments are
mapped before they are used again:

* R is the best orthogonal map from the factors that the client left to those it starts from: it
  minimises ``||R A_old - A_new||^2 + ||B_old R^T - B_new||^2`` (the orthogonal Procrustes problem,
  Schoenemann 1966), and comes from one r x r singular value decomposition;
* first moments of A become ``R m``, those of B ``m R^T``;
* second moments become ``(R o R) v`` and ``v (R o R)^T``, with the entries of R squared: what they
  would be if the directions' gradients were uncorrelated;
* the gradient of A is proportional to B and the other way round, so the moments of a factor are
  scaled by how much longer or shorter the other one became, the second ones by its square.

Moments of a module whose rank or scaling changed, or of a factor whose counterpart grew or shrank
more than a thousandfold, begin anew. The state holds three numbers for each one of the factors (the
factor as it was left and two moments) and two for each of the head; it does not grow with the
rounds.

It contains nothing but what followed from gradients that the client could have sent: with private
training it is post-processing, and costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

_MOST_GROWN = 1e3


@dataclass(frozen=True, kw_only=True)
class Moments:
    """AdamW's state of one tensor.

    Args:
        first: Running mean of the gradients, without bias correction; the tensor's shape.
        second: Running mean of their squares, same shape.
        steps: How many steps they have seen.
    """

    first: FloatArray
    second: FloatArray
    steps: int


@dataclass(frozen=True, kw_only=True)
class ModuleMoments:
    """The moments of one module's factors and the factors they belong to.

    Args:
        factors: The factors as the client left them.
        a: A's moments, or None where it has none.
        b: B's, likewise.
    """

    factors: LowRankFactors
    a: Moments | None
    b: Moments | None


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """All moments of one client.

    Args:
        modules: By module.
        dense: By name of the head's tensors.
    """

    modules: Mapping[str, ModuleMoments] = field(default_factory=dict)
    dense: Mapping[str, Moments] = field(default_factory=dict)


def mapped_state(state: OptimizerState, start: Adapter) -> OptimizerState:
    """Map the moments to the basis of a round's start.

    Args:
        state: What the last round left.
        start: What the client trains now; modules of the state that it lacks are left out.

    Returns:
        The moments to begin with, and the start's factors with them.
    """
    modules = {}
    for name, kept in state.modules.items():
        if name in start.modules:
            mapped = _mapped(kept, start.modules[name])
            if mapped is not None:
                modules[name] = mapped
    dense = {
        name: moments
        for name, moments in state.dense.items()
        if name in start.dense and start.dense[name].shape == moments.first.shape
    }
    return OptimizerState(modules=modules, dense=dense)


def _mapped(kept: ModuleMoments, start: LowRankFactors) -> ModuleMoments | None:
    left = kept.factors
    if left.rank != start.rank or left.shape != start.shape or left.scaling != start.scaling:
        return None
    rotation = best_rotation(left, start)
    squared = np.square(rotation)
    a, b = None, None
    grown_a = _grown(left.a, start.a)
    grown_b = _grown(left.b, start.b)
    if kept.a is not None and grown_b is not None:
        a = Moments(
            first=_float32(grown_b * (rotation @ kept.a.first)),
            second=_float32(grown_b**2 * (squared @ kept.a.second)),
            steps=kept.a.steps,
        )
    if kept.b is not None and grown_a is not None:
        b = Moments(
            first=_float32(grown_a * (kept.b.first @ rotation.T)),
            second=_float32(grown_a**2 * (kept.b.second @ squared.T)),
            steps=kept.b.steps,
        )
    return ModuleMoments(factors=start, a=a, b=b)


def best_rotation(left: LowRankFactors, start: LowRankFactors) -> NDArray[np.float64]:
    """The orthogonal map that brings one basis nearest to another.

    Args:
        left: The factors as they were left, of rank r.
        start: The factors of the new start, of the same shapes.

    Returns:
        R, shape (r, r), float64, with ``R A_left`` near ``A_start`` and ``B_left R^T`` near
        ``B_start``.
    """
    overlap = start.a.astype(np.float64) @ left.a.T.astype(np.float64)
    overlap += start.b.T.astype(np.float64) @ left.b.astype(np.float64)
    u, _, v = np.linalg.svd(overlap)
    rotation: NDArray[np.float64] = u @ v
    return rotation


def _grown(left: FloatArray, start: FloatArray) -> float | None:
    """How many times as long a factor is, or None where that is no number to go by."""
    before, after = (float(np.linalg.norm(one.astype(np.float64))) for one in (left, start))
    grown = after / before if before > 0.0 else math.inf
    return grown if 1.0 / _MOST_GROWN <= grown <= _MOST_GROWN else None


def _float32(values: NDArray[np.floating]) -> FloatArray:
    return values.astype(np.float32)
