"""Low-rank algebra: sums of products B A kept as factors, never as a dense matrix.

A weighted sum of low-rank updates is one product of stacked factors,
``sum_i w_i B_i A_i = [w_1 B_1, ...] [A_1; ...]`` (Wang et al. 2024, arXiv:2409.05976, FLoRA). Its
singular value decomposition comes from the stacks' Gram matrices where they tell every direction
from rounding, else from thin QR decompositions of the two stacks and the small matrix between
them. Everything here is computed in float64; see :mod:`intarsia_aggregators.recompression` for the
best approximation of a large stack at a small rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from intarsia_client.wire import FloatArray, LowRankFactors

from intarsia_aggregators.gram import gram, inner_products, norms
from intarsia_aggregators.spectrum import exact_spectrum

# Directions whose joint energy is below this share of the whole are rounding, not signal: float32
# factors carry relative errors of 6e-8, and one aggregate must be exact to 1e-6.
NUMERICAL_ZERO = 1e-8

# A square must be this many times the Gram matrices' rounding for its direction to be orthogonal
# to the others to 1e-7; otherwise QR decides.
_CLEAR = 1e7


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term ``weight * scaling * B @ A`` of a sum.

    Args:
        weight: A finite number of either sign.
        factors: The module's factors and scaling.
    """

    weight: float
    factors: LowRankFactors


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """A singular value decomposition ``U diag(sigma) V`` in float64, largest first.

    Args:
        u: Shape (d_out, k), orthonormal columns.
        sigma: Shape (k,), falling.
        v: Shape (k, d_in), orthonormal rows.
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor

    def balanced(self) -> LowRankFactors:
        """Factors ``(U sqrt(sigma)) (sqrt(sigma) V)`` in float32 with scaling 1."""
        root = self.sigma.sqrt()
        return LowRankFactors(
            a=_float32(root[:, None] * self.v), b=_float32(self.u * root[None, :]), scaling=1.0
        )


def stack(terms: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a weighted sum of products as one product of stacked factors.

    Args:
        terms: At least one term, all of one shape (d_out, d_in).

    Returns:
        ``b`` of shape (d_out, R) and ``a`` of shape (R, d_in) in float64, R the summed rank;
        the weight and the scaling sit on B alone.
    """
    b = np.concatenate(
        [(t.weight * t.factors.scaling) * t.factors.b.astype(np.float64) for t in terms], axis=1
    )
    a = np.concatenate([t.factors.a.astype(np.float64) for t in terms], axis=0)
    return torch.from_numpy(b), torch.from_numpy(a)


def decompose(b: torch.Tensor, a: torch.Tensor) -> Decomposition:
    """Singular value decomposition of ``b @ a`` without forming it.

    Args:
        b: Shape (d_out, R), float64, on any device.
        a: Shape (R, d_in), float64, likewise.

    Returns:
        The decomposition at rank min(d_out, d_in, R); costs O((d_out + d_in) R^2).
    """
    count = b.shape[1]
    if 0 < count <= min(b.shape[0], a.shape[1]):
        ones = torch.ones(count, dtype=torch.float64, device=b.device)
        spectrum = exact_spectrum(gram(b.T), gram(a), ones, count)
        if (
            spectrum is not None
            and len(spectrum.squares) == count
            and float(spectrum.squares[-1]) > _CLEAR * spectrum.rounding
        ):
            root = spectrum.squares.sqrt().sqrt()
            return Decomposition(
                u=b @ (spectrum.left / root),
                sigma=spectrum.squares.sqrt(),
                v=(spectrum.right / root[:, None]) @ a,
            )
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, sigma, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Decomposition(u=q_b @ u, sigma=sigma, v=v @ q_a.T)


def without_rounding(decomposition: Decomposition) -> Decomposition:
    """Drop the directions that are only rounding, so that rank does not grow with noise.

    Args:
        decomposition: Any decomposition.

    Returns:
        The leading directions; what is cut has a Frobenius norm below :data:`NUMERICAL_ZERO` of
        the whole. Rank 0 for a product that is zero.
    """
    tail = decomposition.sigma.square().flip(0).cumsum(0).flip(0).sqrt()
    total = float(tail[0]) if len(tail) else 0.0
    keep = int((tail > NUMERICAL_ZERO * total).sum()) if total > 0.0 else 0
    return truncated(decomposition, keep)


def truncated(decomposition: Decomposition, rank: int) -> Decomposition:
    """The best approximation of the given rank (Eckart and Young 1936).

    Args:
        decomposition: Any decomposition.
        rank: How many directions to keep, at least 0.

    Returns:
        The leading ``rank`` directions, or all where there are fewer.
    """
    return Decomposition(
        u=decomposition.u[:, :rank], sigma=decomposition.sigma[:rank], v=decomposition.v[:rank]
    )


def cut_energy(decomposition: Decomposition, rank: int) -> float:
    """Share of the squared Frobenius norm that truncation to ``rank`` cuts, between 0 and 1."""
    squares = decomposition.sigma.square()
    total = float(squares.sum())
    return float(squares[rank:].sum()) / total if total > 0.0 else 0.0


def energy_by_rank(decomposition: Decomposition) -> torch.Tensor:
    """What share of the squared Frobenius norm each rank keeps.

    Args:
        decomposition: Any decomposition.

    Returns:
        Shape (k + 1,), float64, rising from 0 at rank 0 to 1 at rank k; all ones for a product
        that is zero, of which nothing can be cut.
    """
    squares = decomposition.sigma.square()
    kept = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    return kept / kept[-1] if float(kept[-1]) > 0.0 else torch.ones_like(kept)


def product_norm(factors: LowRankFactors) -> float:
    """Frobenius norm of ``scaling * B @ A`` from the factors' Gram matrices.

    Unlike the factors' own norms it does not change under the gauge (c B, A / c).

    Args:
        factors: One module's factors.

    Returns:
        The norm in float64; infinite or NaN where the product is.
    """
    b, a = torch.from_numpy(factors.b), torch.from_numpy(factors.a)
    ones = torch.ones(factors.rank, dtype=torch.float64)
    unscaled = norms(inner_products(b, a, ones, [factors.rank]))
    return float(abs(factors.scaling) * unscaled[0])


def _float32(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = np.ascontiguousarray(tensor.numpy().astype(np.float32))
    return array
