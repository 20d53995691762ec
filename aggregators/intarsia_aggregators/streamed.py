"""The best approximation of a stack that is too large to hold, read again for each pass.

A sum of very many adapters has a stack of more directions than there is memory for, and Gram
matrices larger still. Its leading directions come from what the sum does to a block of vectors
(:mod:`intarsia_aggregators.subspace`), a few adapters at a time, and its energy from the Gram
matrices of pairs of such parts. Memory depends on the layer's width and the wanted rank, not on the
number of adapters; every pass reads the module of all adapters once more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from intarsia_aggregators.gram import symmetric_product
from intarsia_aggregators.recompression import Recompressed
from intarsia_aggregators.sources import ModuleTerms, Workspace
from intarsia_aggregators.spectrum import TOLERANCE
from intarsia_aggregators.subspace import Leading, leading_directions

# Bytes of one part's factors.
_TILE = 8 << 20
# float32 decides where at least this share of the largest square is left out.
_SMALLEST_LEFT_OUT = 1e-4


class StreamedOperator:
    """``W^T W`` of a module's terms, on vectors of the layer's input.

    Args:
        terms: The terms.
        workspace: For one part's factors and what is staged for it.
        kind: The type to compute in.
    """

    def __init__(self, terms: ModuleTerms, workspace: Workspace, kind: torch.dtype) -> None:
        self._terms = terms
        self._workspace = workspace
        self._kind = kind
        self._tiles = terms.tiles(max(_TILE // (4 * sum(terms.shape)), 1))

    def begin(self, width: int) -> torch.Tensor:
        """Random combinations of all rows of A, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        block = torch.randn((self._terms.shape[0], width), generator=generator, dtype=self._kind)
        return self._back(block)

    def metric(self, block: torch.Tensor) -> torch.Tensor:
        """The block itself: its columns are the vectors."""
        return block

    def apply(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """``W^T (W x)`` in two passes."""
        return self._back(self.forward(image))

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """``W x``, shape (d_out, width)."""
        result = block.new_zeros((self._terms.shape[0], block.shape[1]))
        for b, a, weights in self._parts():
            result.addmm_(b, weights[:, None] * (a @ block))
        return result

    def _back(self, block: torch.Tensor) -> torch.Tensor:
        result = block.new_zeros((self._terms.shape[1], block.shape[1]))
        for b, a, weights in self._parts():
            result.addmm_(a.T, weights[:, None] * (b.T @ block))
        return result

    def energy(self) -> float:
        """Squared Frobenius norm of W, by pairs of parts; checks every number on the way.

        Raises:
            InputError: If a number or a source's product is not finite.
        """
        total = 0.0
        for number, tile in enumerate(self._tiles):
            b, a, weights = self._part(tile, "")
            gram_b, gram_a = symmetric_product(b.T), symmetric_product(a)
            tile.check_squares(gram_b.diagonal(), gram_a.diagonal())
            total += _weighted_sum(gram_b, gram_a, weights, weights)
            for other in self._tiles[:number]:
                other_b, other_a, other_weights = self._part(other, "other ")
                total += 2.0 * _weighted_sum(b.T @ other_b, a @ other_a.T, weights, other_weights)
        return max(total, 0.0)

    def _parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for tile in self._tiles:
            yield self._part(tile, "")

    def _part(
        self, tile: ModuleTerms, prefix: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        d_out, d_in = tile.shape
        b = self._workspace.take(f"{prefix}b", d_out, tile.rank)
        a = self._workspace.take(f"{prefix}a", tile.rank, d_in)
        tile.read_b(b, self._workspace)
        tile.read_a(a)
        return b.to(self._kind), a.to(self._kind), tile.coefficients.to(self._kind)


def recompress_streamed(terms: ModuleTerms, rank: int, workspace: Workspace) -> Recompressed:
    """The best approximation of a module's sum at a bounded rank, in passes over its sources.

    Args:
        terms: The terms.
        rank: How many directions to keep at most, at least 1.
        workspace: Memory to use.

    Returns:
        The approximation, as :func:`intarsia_aggregators.recompression.recompress` gives it. What
        is left out is reported from an energy that is exact up to rounding.

    Raises:
        InputError: If a number or a source's product is not finite.
    """
    operator = StreamedOperator(terms, workspace, torch.float32)
    energy = operator.energy()
    leading = _leading(operator, terms, rank, energy)
    left_out = energy - float(leading.squares.sum())
    largest = float(leading.squares[0]) if len(leading.squares) else 0.0
    if not leading.converged or not left_out >= _SMALLEST_LEFT_OUT * largest > 0.0:
        operator = StreamedOperator(terms, workspace, torch.float64)
        energy = operator.energy()
        leading = _leading(operator, terms, rank, energy)
    root = leading.squares.sqrt().sqrt().to(leading.block.dtype)
    b = operator.forward(leading.block) / root
    a = leading.block.T * root[:, None]
    return Recompressed(
        b=b.float(),
        a=a.float().contiguous(),
        energy=energy,
        kept=min(float(leading.squares.sum()), energy),
    )


def _leading(operator: StreamedOperator, terms: ModuleTerms, rank: int, energy: float) -> Leading:
    return leading_directions(
        operator, rank, size=min(terms.shape), energy=energy, tolerance=TOLERANCE
    )


def _weighted_sum(
    gram_b: torch.Tensor, gram_a: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> float:
    products = gram_b.double().mul_(gram_a)
    return float(rows.double() @ products @ columns.double())
