"""Gram matrices of stacked factors: inner products of updates without a dense matrix.

For two products in factors,

    <B A, B' A'>  =  sum((B^T B') * (A A'^T))

so all inner products of a round's updates, their norms and their distances are sums over blocks of
two small matrices. They do not change under the gauge (c B, A / c). Gram matrices are symmetric:
only the blocks on and below the diagonal are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Columns that are converted to float64 at a time; little beside the matrices themselves.
_CHUNK = 1024
_SMALLEST_PANEL, _LARGEST_PANEL = 80, 160


@dataclass(frozen=True, kw_only=True)
class Equilibrium:
    """Scales that give both factors of each rank-one term the same norm.

    With ``b_j`` and ``a_j`` the term's column and row and ``c_j`` its coefficient, the scaled term
    ``(left_j b_j)(right_j a_j)`` is ``c_j b_j a_j``, and both its factors have the norm
    ``sqrt(|c_j| ||b_j|| ||a_j||)``. Precision then does not depend on the gauge.

    Args:
        left: Shape (R,), float64; 0 for a term that is zero.
        right: Shape (R,), float64; 0 for a term that is zero.
    """

    left: torch.Tensor
    right: torch.Tensor


def symmetric_product(rows: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """``rows @ rows.T``, of which only the lower half is multiplied.

    Args:
        rows: Shape (R, d); a transposed view is as good.
        out: Where to put it, shape (R, R); a new tensor by default.

    Returns:
        The symmetric product, shape (R, R), in the type of ``rows``.
    """
    count = rows.shape[0]
    product = rows.new_empty((count, count)) if out is None else out
    # Halving the product of few rows gains nothing; many narrow panels are slow each.
    panel = min(max(count // 5, _SMALLEST_PANEL), _LARGEST_PANEL)
    for begin in range(0, count, panel):
        end = min(begin + panel, count)
        torch.mm(rows[begin:end], rows[:end].T, out=product[begin:end, :end])
        # Not every processor's product of a matrix with itself is symmetric to the last bit.
        square = product[begin:end, begin:end]
        square.copy_(square.tril() + square.tril(-1).T)
    for begin in range(panel, count, panel):
        end = min(begin + panel, count)
        product[:begin, begin:end] = product[begin:end, :begin].T
    return product


def gram(rows: torch.Tensor) -> torch.Tensor:
    """``rows @ rows.T`` in float64, converted piece by piece.

    Args:
        rows: Shape (R, d), any floating type; a transposed view is as good.

    Returns:
        Shape (R, R), float64, symmetric.
    """
    count, width = rows.shape
    total = rows.new_zeros((count, count), dtype=torch.float64)
    for begin in range(0, width, _CHUNK):
        total += symmetric_product(rows[:, begin : begin + _CHUNK].double())
    return total


def equilibrium(
    squares_b: torch.Tensor, squares_a: torch.Tensor, coefficients: torch.Tensor
) -> Equilibrium:
    """The scales that balance each rank-one term.

    Args:
        squares_b: Squared norms of the columns of B, shape (R,), finite.
        squares_a: Squared norms of the rows of A, shape (R,), finite.
        coefficients: What multiplies each term, shape (R,), finite, of either sign.

    Returns:
        The scales.
    """
    norm_b, norm_a = squares_b.double().sqrt(), squares_a.double().sqrt()
    size = coefficients.double().abs()
    balanced = (size * norm_b).sqrt() * norm_a.sqrt()
    held = balanced > 0.0
    zero = torch.zeros_like(balanced)
    return Equilibrium(
        left=torch.where(held, coefficients.double().sign() * balanced / norm_b, zero),
        right=torch.where(held, balanced / norm_a, zero),
    )


def scaled(product: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scale a Gram matrix's rows and columns in place.

    Args:
        product: Shape (R, R).
        scale: Shape (R,).

    Returns:
        ``product``, now ``diag(scale) product diag(scale)``.
    """
    factor = scale.to(product.dtype)
    return product.mul_(factor[:, None]).mul_(factor[None, :])


def inner_products(
    b: torch.Tensor, a: torch.Tensor, coefficients: torch.Tensor, ranks: Sequence[int]
) -> torch.Tensor:
    """Inner products of several updates of one module, from one stack of all their terms.

    Args:
        b: Shape (d_out, R), the updates' columns one update after the other.
        a: Shape (R, d_in), their rows.
        coefficients: What multiplies each rank-one term, shape (R,), of either sign; an update
            that is a difference has terms of both signs.
        ranks: How many terms each update has, summing to R; may be 0.

    Returns:
        Shape (N, N), float64, symmetric; the sum over an adapter's modules is that of the whole.
    """
    members = torch.repeat_interleave(
        torch.arange(len(ranks), device=b.device), torch.tensor(ranks, device=b.device)
    )
    weighted = torch.zeros((len(ranks), b.shape[1]), dtype=torch.float64, device=b.device)
    weighted[members, torch.arange(len(members), device=b.device)] = coefficients.double()
    found: torch.Tensor = weighted @ gram(b.T).mul_(gram(a)) @ weighted.T
    return (found + found.T) / 2.0


def norms(products: torch.Tensor) -> torch.Tensor:
    """Norms from inner products.

    Args:
        products: Shape (N, N), see :func:`inner_products`.

    Returns:
        Shape (N,), at least 0.
    """
    return products.diagonal().clamp_min(0.0).sqrt()


def distances(products: torch.Tensor) -> torch.Tensor:
    """Distances between updates from inner products.

    Args:
        products: Shape (N, N), see :func:`inner_products`.

    Returns:
        Shape (N, N), at least 0, zeros on the diagonal. Two updates nearer to each other than 1e-8
        of their norms cannot be told apart.
    """
    squares = products.diagonal()
    between = squares[:, None] + squares[None, :] - 2.0 * products
    return between.clamp_min(0.0).fill_diagonal_(0.0).sqrt()
