"""Where the leading directions of a stack lie, from its Gram matrices alone.

With ``G_B = B^T B = L L^T`` and ``G_A = A A^T`` of a stack B A of R terms, the eigenvalues of
``L^T G_A L = V diag(sigma^2) V^T`` are the product's squared singular values, and ``B L^-T V`` and
``V^T L^T A`` are its left singular vectors and its right ones times sigma. The root may as well be
that of G_A; the better conditioned one is taken. Where few of many directions are wanted, they come
from :mod:`intarsia_aggregators.subspace` instead of a full decomposition.

A Gram matrix holds squares: in float32 directions below 1e-3 of the largest drown in rounding, in
float64 those below 1e-7. Each function says so instead of returning what drowned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from intarsia_aggregators.gram import Equilibrium, equilibrium, scaled
from intarsia_aggregators.subspace import block_width, leading_directions

# How much of the energy that any approximation of this rank leaves out may be left out in addition:
# the Frobenius error is then within 0.1 % of the best.
TOLERANCE = 2e-3

# Squares between which float32's sums of squares neither overflow nor lose digits.
_SMALLEST, _LARGEST = 1e-30, 1e30
# Smallest square of a Cholesky factor's diagonal, of the largest, at which solving by it is safe.
_CONDITION = {torch.float32: 1e-4, torch.float64: 1e-10}
# float32 decides only where what is left out is this many times its rounding.
_ABOVE_ROUNDING = 1e3
# float64 decides only where the rounding of all squares together is below this share of the energy,
# which is 1e-6 of the norm.
_NEGLIGIBLE = 1e-12
# Eigenvalues of a Gram matrix below this share of the largest are rounding.
_DEPENDENT = 2e-15
# A square is a direction's, and not rounding, from so many times the rounding on.
_STANDS_OUT = 8.0
_POWER_STEPS = 2
_PIECE = 1 << 16
# Up to so many terms a full decomposition is quick enough for any rank.
_SMALL = 384


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The leading directions of a stack B A.

    ``B @ left`` and ``right @ A`` are balanced factors of the best approximation, largest
    direction first.

    Args:
        left: Shape (R, k).
        right: Shape (k, R).
        squares: Squared singular values, shape (k,), float64, falling.
        energy: Squared Frobenius norm of the whole product.
        rounding: What a square is uncertain by.
        left_is_basis: Whether the columns of ``B @ left`` are orthogonal by construction; else the
            rows of ``right @ A`` are.
    """

    left: torch.Tensor
    right: torch.Tensor
    squares: torch.Tensor
    energy: float
    rounding: float
    left_is_basis: bool


@dataclass(frozen=True)
class GramOperator:
    """A stack's product on coefficients of the rows of A, by its Gram matrices."""

    gram_b: torch.Tensor
    gram_a: torch.Tensor

    def begin(self, width: int) -> torch.Tensor:
        """Random combinations of all terms, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        block = torch.randn((len(self.gram_b), width), generator=generator)
        return self.gram_b @ block.to(self.gram_b)

    def metric(self, block: torch.Tensor) -> torch.Tensor:
        """``G_A x``, since the vectors are ``A^T x``."""
        return self.gram_a @ block

    def apply(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """``G_B G_A x``, since ``W^T W A^T x = A^T (G_B G_A x)``."""
        return self.gram_b @ image


def quick_spectrum(
    gram_b: torch.Tensor, gram_a: torch.Tensor, coefficients: torch.Tensor, rank: int
) -> Spectrum | None:
    """The leading directions in float32.

    Args:
        gram_b: ``B^T B``, shape (R, R), float32; it is overwritten.
        gram_a: ``A A^T``, likewise.
        coefficients: What multiplies each term, shape (R,), of either sign.
        rank: How many directions to find, at least 1.

    Returns:
        The directions, their energy at most :data:`TOLERANCE` times what is left out below the
        best possible; None where float32 cannot tell.
    """
    squares = torch.stack([gram_b.diagonal(), gram_a.diagonal()])
    held = squares[squares > 0.0]
    if len(held) and not _SMALLEST < float(held.min()) <= float(squares.max()) < _LARGEST:
        return None
    problem = _balanced(gram_b, gram_a, coefficients)
    directions = None
    if len(gram_b) > max(_SMALL, 4 * block_width(rank)):
        directions = _leading_directions(problem, rank)
    if directions is None:
        directions = _all_directions(problem, rank)
    if directions is None:
        return None
    left_out = problem.energy - float(directions.squares.sum())
    if left_out < _ABOVE_ROUNDING * problem.rounding:
        return None
    return _placed(problem, directions)


def exact_spectrum(
    gram_b: torch.Tensor, gram_a: torch.Tensor, coefficients: torch.Tensor, rank: int
) -> Spectrum | None:
    """The leading directions in float64, by a full decomposition.

    Args:
        gram_b: ``B^T B``, shape (R, R), float64, finite; it is overwritten.
        gram_a: ``A A^T``, likewise.
        coefficients: What multiplies each term, shape (R,), of either sign.
        rank: How many directions to find, at least 1.

    Returns:
        The directions that stand out of rounding; None where the terms cancel each other so far
        that squares in float64 cannot tell.
    """
    problem = _balanced(gram_b, gram_a, coefficients)
    if _STANDS_OUT * len(gram_b) * problem.rounding > _NEGLIGIBLE * problem.energy > 0.0:
        return None
    directions = _all_directions(problem, rank)
    return None if directions is None else _placed(problem, directions)


@dataclass(frozen=True)
class _Problem:
    """Gram matrices of the balanced stack, its largest term of norm 1."""

    gram_b: torch.Tensor
    gram_a: torch.Tensor
    balance: Equilibrium
    largest: float
    energy: float
    rounding: float


@dataclass(frozen=True)
class _Directions:
    """Orthonormal directions on one side, times sigma on the other, as coefficients."""

    basis: torch.Tensor
    spread: torch.Tensor
    squares: torch.Tensor
    left_is_basis: bool


def _balanced(gram_b: torch.Tensor, gram_a: torch.Tensor, coefficients: torch.Tensor) -> _Problem:
    squares_b = gram_b.diagonal().double()
    balance = equilibrium(squares_b, gram_a.diagonal(), coefficients)
    # The norm of the largest term, of which both its factors have the root.
    largest = float((balance.left.abs() * squares_b.sqrt()).square().max())
    unit = largest**-0.5 if largest > 0.0 else 0.0
    scaled(gram_b, balance.left * unit)
    scaled(gram_a, balance.right * unit)
    # Piece by piece, without the product's memory, and added up in float64.
    sides = [torch.split(gram.view(-1), _PIECE) for gram in (gram_b, gram_a)]
    energy = math.fsum(float(torch.dot(*pieces)) for pieces in zip(*sides, strict=True))
    rounding = torch.finfo(gram_b.dtype).eps * _top(gram_b) * _top(gram_a)
    return _Problem(gram_b, gram_a, balance, largest, max(energy, 0.0), rounding)


def _top(gram: torch.Tensor) -> float:
    """The largest eigenvalue, from below and nearly."""
    vector = gram.sum(dim=1)
    for _ in range(_POWER_STEPS):
        norm = torch.linalg.vector_norm(vector)
        if not norm > 0.0:
            break
        vector = gram @ (vector / norm)
    return max(float(torch.linalg.vector_norm(vector)), float(gram.diagonal().max()))


def _leading_directions(problem: _Problem, rank: int) -> _Directions | None:
    found = leading_directions(
        GramOperator(problem.gram_b, problem.gram_a),
        rank,
        size=len(problem.gram_b),
        energy=problem.energy,
        tolerance=TOLERANCE,
    )
    if not found.converged:
        return None
    return _Directions(found.block, found.image, found.squares, left_is_basis=False)


def _all_directions(problem: _Problem, rank: int) -> _Directions | None:
    """Directions by a root of one Gram matrix; float32 has none where both are ill-conditioned."""
    sides = ((problem.gram_b, problem.gram_a, True), (problem.gram_a, problem.gram_b, False))
    for gram, other, left_is_basis in sides:
        root = _cholesky(gram)
        if root is not None:
            vectors, squares = _largest(root.T @ other @ root, rank, problem.rounding)
            basis = torch.linalg.solve_triangular(root.T, vectors, upper=True)
            return _Directions(basis, root @ vectors, squares, left_is_basis)
    if problem.gram_b.dtype == torch.float32:
        return None
    values, axes = torch.linalg.eigh(problem.gram_b)
    held = values > _DEPENDENT * values[-1]
    widths, axes = values[held].sqrt()[:, None], axes[:, held]
    inner = widths * (axes.T @ problem.gram_a @ axes) * widths.T
    vectors, squares = _largest(inner, rank, problem.rounding)
    return _Directions(axes @ (vectors / widths), axes @ (vectors * widths), squares, True)


def _cholesky(gram: torch.Tensor) -> torch.Tensor | None:
    """The lower root of a Gram matrix whose terms are balanced; None where it has nearly none."""
    zero_terms = (gram.diagonal() == 0.0).to(gram.dtype)
    root, failed = torch.linalg.cholesky_ex(gram + torch.diag(zero_terms))
    if int(failed):
        return None
    squares = root.diagonal().square()
    return root if float(squares.min() / squares.max()) >= _CONDITION[gram.dtype] else None


def _largest(
    product: torch.Tensor, rank: int, rounding: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors of the largest eigenvalues that stand out of rounding, and these, falling."""
    values, vectors = torch.linalg.eigh(product)
    count = min(rank, int((values > _STANDS_OUT * rounding).sum()))
    leading = values.flip(0)[:count].double()
    return vectors[:, len(values) - count :].flip(1), leading


def _placed(problem: _Problem, directions: _Directions) -> Spectrum:
    """Balanced coefficients of the stack as it was given."""
    kind = problem.gram_b.dtype
    root = directions.squares.sqrt().sqrt()
    basis = directions.basis * root.to(kind)
    spread = directions.spread * root.reciprocal().to(kind)
    left, right = (basis, spread) if directions.left_is_basis else (spread, basis)
    return Spectrum(
        left=left * problem.balance.left[:, None].to(kind),
        right=right.T * problem.balance.right[None, :].to(kind),
        squares=directions.squares * problem.largest**2,
        energy=problem.energy * problem.largest**2,
        rounding=problem.rounding * problem.largest**2,
        left_is_basis=directions.left_is_basis,
    )
