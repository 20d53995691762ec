"""The leading directions of a product that is known by what it does to a block of vectors.

Chebyshev-filtered subspace iteration (Zhou, Saad, Tiago and Chelikowsky 2006, Self-consistent-field
calculations using Chebyshev-filtered subspace iteration, J. Comput. Phys. 219): a block a little
wider than what is wanted is multiplied by a polynomial of W^T W that grows beyond the wanted
singular values and stays small below them, then rotated to the best directions of its span
(Rayleigh-Ritz). A full decomposition of R directions costs 10 R^3 and more; this costs the
polynomial's degree times the block's width times what one application costs.

How far it is from the best is estimated twice, and the larger counts. From the last stage's gain: a
filter that lifts the last wanted direction g times over what is left out divides what is missing by
g^2. And from the residuals: an approximate singular vector x with square theta, of which
``W^T W x - theta x`` has the norm r, misses about r^2 / (theta - mu) to directions outside the
block, whose squares are at most mu. The one trusts that every direction had its part in the block,
the other that no direction is still a mixture of many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

# A block's directions below this share of its largest, squared, are rounding.
_DEPENDENT = {torch.float32: 1e-5, torch.float64: 1e-12}
# From this share of a vector apart from all before it, a block's squares can be believed.
_SOUND = 1e-3
# A product of which less than this share of the energy is left out has no more directions.
_NOTHING = 1e-12
# Squares beyond so many times the last wanted one's need no polynomial to stand out.
_FAR = 10.0
# Beyond this lift of the largest direction over the last wanted one, what the latter has of the
# former drowns it.
_STEEPEST = 1e4
# How far one filter may be asked to lift the last wanted direction over what is left out.
_SMALLEST_LIFT, _LARGEST_LIFT = 1.5, 16.0
_HIGHEST_DEGREE = 12
_MOST_STAGES = 10


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
class _Ritz:
    """The best approximate singular vectors within a block's span, largest first.

    ``residuals`` are what the product makes of them less their squares times themselves; the
    images are the metric's. ``sound`` says that the block was so far from dependent that none of
    it is rounding.
    """

    vectors: torch.Tensor
    images: torch.Tensor
    residuals: torch.Tensor
    residual_images: torch.Tensor
    squares: torch.Tensor
    sound: bool

    def missing(self, count: int) -> float:
        """Estimate of the energy that the first ``count`` of them miss to those outside."""
        sizes = torch.sum(self.residuals * self.residual_images, dim=0)[:count].double()
        norms = sizes.clamp_min(0.0).sqrt()
        gaps = self.squares[:count] - self.squares[-1]
        # A square is off by no more than the residual's norm, however small the gap.
        return float((norms.square() / (gaps + norms).clamp_min(1e-300)).sum())


@dataclass(frozen=True)
class _Filter:
    """A Chebyshev polynomial that is small on [0, cut], for squares up to ``far``."""

    degree: int
    cut: float
    far: float

    def size(self, square: float) -> float:
        return _chebyshev(self.degree, 2.0 * square / self.cut - 1.0)

    def lift(self, squares: torch.Tensor, count: int) -> float:
        """How far it lifts the last wanted direction over the last of the block."""
        return self.size(float(squares[count - 1])) / self.size(float(squares[-1]))


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
    width = min(size, block_width(count))
    block = operator.begin(width)
    applied: _Filter | None = None
    converged, before = False, 0.0
    for _ in range(_MOST_STAGES):
        ritz = _best_of_span(operator, block)
        outside = max(energy - float(ritz.squares.sum()), 0.0)
        if len(ritz.squares) <= count:
            converged = outside <= _NOTHING * energy
            if converged:
                break
            moved = ritz.residuals + ritz.vectors * ritz.squares.to(block.dtype)
            block = _refilled(operator, moved, width)
            continue
        kept = float(ritz.squares[:count].sum())
        allowed = tolerance * max(energy - kept, 0.0)
        missing = ritz.missing(count)
        if applied is not None:
            lift = applied.lift(ritz.squares, count)
            missing = max(missing, max(kept - before, 0.0) / max(lift**2 - 1.0, 0.01))
        # No more can be missing than lies outside the block.
        converged = ritz.sound and min(missing if applied else outside, outside) <= allowed
        if converged:
            break
        wanted = 2.0 * math.sqrt(missing / allowed) if allowed > 0.0 else _LARGEST_LIFT
        applied, before = _chosen_filter(ritz.squares, count, wanted), kept
        block = _refilled(operator, _filtered(operator, ritz, applied), width)
    return Leading(
        block=ritz.vectors[:, :count],
        image=ritz.images[:, :count],
        squares=ritz.squares[:count],
        converged=converged,
    )


def _best_of_span(operator: Operator, block: torch.Tensor) -> _Ritz:
    """Turn a block into the best approximate singular vectors of its span (Rayleigh-Ritz)."""
    image = operator.metric(block)
    moved = operator.apply(block, image)
    inner, outer = _symmetric(block.T @ image), _symmetric(image.T @ moved)
    basis, sound = _orthogonal_basis(inner, _DEPENDENT[block.dtype])
    squares, rotation = torch.linalg.eigh(_symmetric(basis.T @ outer @ basis))
    positive = squares > 0.0
    turn = (basis @ rotation[:, positive]).flip(1).to(block.dtype)
    squares = squares[positive].flip(0)
    vectors = block @ turn
    residuals = moved @ turn - vectors * squares.to(block.dtype)
    return _Ritz(
        vectors=vectors,
        images=image @ turn,
        residuals=residuals,
        residual_images=operator.metric(residuals),
        squares=squares,
        sound=sound and len(squares) == block.shape[1],
    )


def _orthogonal_basis(inner: torch.Tensor, dependent: float) -> tuple[torch.Tensor, bool]:
    """Combinations of vectors with these inner products that are orthonormal.

    Returns:
        The combinations, fewer where vectors depend on each other, and whether none nearly does.
    """
    scale = inner.diagonal().clamp_min(1e-300).rsqrt()
    unit = scale[:, None] * inner * scale
    root, failed = torch.linalg.cholesky_ex(unit)
    if not int(failed) and float(root.diagonal().min()) ** 2 >= _SOUND:
        eye = torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
        return scale[:, None] * torch.linalg.solve_triangular(root.T, eye, upper=True), True
    values, vectors = torch.linalg.eigh(unit)
    held = values > dependent * values[-1].clamp_min(1e-300)
    return scale[:, None] * (vectors[:, held] * values[held].rsqrt()), False


def _chosen_filter(squares: torch.Tensor, count: int, lift: float) -> _Filter:
    """The lowest degree that lifts as wanted, as far as rounding allows."""
    cut, last = float(squares[-1]), float(squares[count - 1])
    first = min(float(squares[0]), _FAR * last)
    growth = math.acosh(max(2.0 * last / cut - 1.0, 1.0 + 1e-6))
    wanted = math.acosh(min(max(lift, _SMALLEST_LIFT), _LARGEST_LIFT))
    degree = min(max(math.ceil(wanted / growth), 1), _HIGHEST_DEGREE)
    while degree > 1:
        polynomial = _Filter(degree, cut, _FAR * last)
        if polynomial.size(first) <= _STEEPEST * polynomial.size(last):
            break
        degree -= 1
    return _Filter(degree, cut, _FAR * last)


def _filtered(operator: Operator, ritz: _Ritz, polynomial: _Filter) -> torch.Tensor:
    """The polynomial of the product times approximate singular vectors.

    What little the others have of those far above would outgrow them: it is taken out at each
    step, and those far above, which need no polynomial, are multiplied by the product once.
    """
    squares = ritz.squares.to(ritz.vectors.dtype)
    far = int((ritz.squares > polynomial.far).sum())
    above, its_image = ritz.vectors[:, :far], ritz.images[:, :far]
    half = polynomial.cut / 2.0
    first = 1.0 / (2.0 * float(squares[far]) / polynomial.cut - 1.0)
    scale, earlier = first, ritz.vectors[:, far:]
    # The product less half the cut, of what it was already applied to, and the metric of that.
    shift, unit = squares[far:] - half, first / half
    current = torch.addcmul(ritz.residuals[:, far:], earlier, shift).mul_(unit)
    image = torch.addcmul(ritz.residual_images[:, far:], ritz.images[:, far:], shift).mul_(unit)
    for step in range(1, polynomial.degree):
        following = 1.0 / (2.0 / first - scale)
        if step > 1:
            image = operator.metric(current)
        moved = operator.apply(current, image)
        moved.sub_(current, alpha=half).mul_(2.0 * following / half)
        moved.sub_(earlier, alpha=scale * following)
        if far:
            moved.sub_(above @ (its_image.T @ moved))
        earlier, current, scale = current, moved, following
    if not far:
        return current
    return torch.cat([ritz.residuals[:, :far] + above * squares[:far], current], dim=1)


def _refilled(operator: Operator, block: torch.Tensor, width: int) -> torch.Tensor:
    """Put new directions, apart from a block's, where rounding made some dependent."""
    lacking = width - block.shape[1]
    if lacking == 0:
        return block
    fresh = operator.begin(width)[:, :lacking]
    image = operator.metric(block)
    scale = torch.sum(block * image, dim=0).clamp_min(1e-30).rsqrt()
    inner = _symmetric(scale[:, None] * (block.T @ image) * scale)
    share = torch.linalg.pinv(inner, hermitian=True) @ (scale[:, None] * (image.T @ fresh)).double()
    return torch.cat([block, fresh - block @ (scale[:, None] * share.to(block.dtype))], dim=1)


def _chebyshev(degree: int, at: float) -> float:
    # Ratios of these are compared; what is beyond a float's range is beyond all limits.
    return math.cosh(min(degree * math.acosh(at), 700.0)) if at > 1.0 else 1.0


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    wide = matrix.double()
    return (wide + wide.T) / 2.0
