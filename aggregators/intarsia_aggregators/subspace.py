"""The leading directions of a product that is known by what it does to a block of vectors.

Chebyshev-filtered subspace iteration (Zhou, Saad, Tiago and Chelikowsky 2006, Self-consistent-field
calculations using Chebyshev-filtered subspace iteration, J. Comput. Phys. 219): a block a little
wider than what is wanted is multiplied by a polynomial of W^T W that grows beyond the wanted
singular values and stays small below them, then rotated to the best directions of its span
(Rayleigh-Ritz). A full decomposition of R directions costs 10 R^3 and more; this costs the
polynomial's degree times the block's width times what one application costs.

How far it is from the best is estimated from what the last stage still gained: a filter that lifts
the last wanted direction g times over what is left out divides what is missing by g^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

# A block's directions below this share of its largest, squared, are rounding.
_DEPENDENT = {torch.float32: 1e-5, torch.float64: 1e-12}
# Beyond this lift of the largest direction over the last wanted one, rounding drowns the latter.
_STEEPEST = {torch.float32: 1e7, torch.float64: 1e12}
_WANTED_LIFT = 30.0
_HIGHEST_DEGREE = 12
_MOST_STAGES = 12


class Operator(Protocol):
    """``W^T W`` on blocks of vectors ``A^T x``, each known by its coefficients ``x``."""

    def begin(self, width: int) -> torch.Tensor:
        """A block that has a part of every direction, shape (n, width); always the same."""

    def metric(self, block: torch.Tensor) -> torch.Tensor:
        """``M x``, where ``x^T M y`` is the inner product of what x and y stand for."""

    def apply(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The coefficients of ``W^T W`` times a block, of which ``image`` is the metric's."""


@dataclass(frozen=True, kw_only=True)
class Leading:
    """The leading directions.

    Args:
        block: Coefficients of the right singular vectors, shape (n, k).
        image: The metric times ``block``, shape (n, k).
        squares: Squared singular values, shape (k,), float64, falling.
        converged: Whether what is missing is estimated to be within the tolerance.
    """

    block: torch.Tensor
    image: torch.Tensor
    squares: torch.Tensor
    converged: bool


@dataclass(frozen=True)
class _Filter:
    """A Chebyshev polynomial that is small on [0, cut]."""

    degree: int
    cut: float

    def size(self, square: float) -> float:
        return _chebyshev(self.degree, 2.0 * square / self.cut - 1.0)


def block_width(count: int) -> int:
    """How wide a block the iteration takes for so many directions."""
    return count + max(16, count // 2)


def leading_directions(
    operator: Operator, count: int, *, size: int, energy: float, tolerance: float
) -> Leading:
    """Find the leading right singular vectors.

    Args:
        operator: The product.
        count: How many to find, at least 1.
        size: Length of a coefficient vector.
        energy: Squared Frobenius norm of the product.
        tolerance: What may be missing of the best possible energy, as a share of the energy that
            is left out.

    Returns:
        The directions, at most ``count``; fewer where the product has no more that are not
        rounding.
    """
    block = operator.begin(min(size, block_width(count)))
    applied: _Filter | None = None
    before = math.inf
    for _ in range(_MOST_STAGES):
        image = operator.metric(block)
        block, image, twice, squares = _best_of_span(block, image, operator.apply(block, image))
        if len(squares) == 0:
            return Leading(block=block, image=image, squares=squares, converged=True)
        kept = float(squares[:count].sum())
        left_out = max(energy - kept, 0.0)
        done = len(squares) <= count
        if applied is not None and not done:
            lift = applied.size(float(squares[count - 1])) / applied.size(float(squares[-1]))
            missing = max(kept - before, 0.0) / max(lift**2 - 1.0, 0.01)
            done = missing <= tolerance * left_out
        if done:
            break
        before = kept
        applied = _chosen_filter(squares, count, block.dtype)
        block = _filtered(operator, block, twice, applied, float(squares[0]))
    return Leading(
        block=block[:, :count], image=image[:, :count], squares=squares[:count], converged=done
    )


def _best_of_span(
    block: torch.Tensor, image: torch.Tensor, twice: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate a block to the singular vectors of the product within its span (Rayleigh-Ritz)."""
    inner = _symmetric(block.T @ image)
    outer = _symmetric(image.T @ twice)
    scale = inner.diagonal().clamp_min(1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * inner * scale)
    held = values > _DEPENDENT[block.dtype] * values[-1].clamp_min(1e-300)
    basis = scale[:, None] * (vectors[:, held] * values[held].rsqrt())
    squares, rotation = torch.linalg.eigh(_symmetric(basis.T @ outer @ basis))
    positive = squares > 0.0
    turn = (basis @ rotation[:, positive]).flip(1).to(block.dtype)
    return block @ turn, image @ turn, twice @ turn, squares[positive].flip(0)


def _chosen_filter(squares: torch.Tensor, count: int, kind: torch.dtype) -> _Filter:
    cut, last, first = float(squares[-1]), float(squares[count - 1]), float(squares[0])
    growth = math.acosh(max(2.0 * last / cut - 1.0, 1.0 + 1e-6))
    degree = min(max(math.ceil(math.acosh(_WANTED_LIFT) / growth), 1), _HIGHEST_DEGREE)
    while degree > 1:
        filter_ = _Filter(degree, cut)
        if filter_.size(first) <= _STEEPEST[kind] * filter_.size(last):
            break
        degree -= 1
    return _Filter(degree, cut)


def _filtered(
    operator: Operator,
    block: torch.Tensor,
    twice: torch.Tensor,
    polynomial: _Filter,
    largest: float,
) -> torch.Tensor:
    """The polynomial of the product times a block, scaled to 1 at the largest direction."""
    half = polynomial.cut / 2.0
    first = 1.0 / (2.0 * largest / polynomial.cut - 1.0)
    scale, earlier = first, block
    current = torch.sub(twice, block, alpha=half).mul_(first / half)
    for _ in range(1, polynomial.degree):
        following = 1.0 / (2.0 / first - scale)
        moved = operator.apply(current, operator.metric(current))
        moved.sub_(current, alpha=half).mul_(2.0 * following / half)
        moved.sub_(earlier, alpha=scale * following)
        earlier, current, scale = current, moved, following
    return current


def _chebyshev(degree: int, at: float) -> float:
    # Ratios of these are compared; what is beyond a float's range is beyond all limits.
    return math.cosh(min(degree * math.acosh(at), 700.0)) if at > 1.0 else 1.0


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    wide = matrix.double()
    return (wide + wide.T) / 2.0
