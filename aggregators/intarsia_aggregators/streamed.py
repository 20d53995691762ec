"""The best approximation of a stack that is too large to hold.

A sum of very many adapters has a stack of more directions than there is memory for, and Gram
matrices larger still. Its leading directions come from what the sum does to a block of vectors
(:mod:`intarsia_aggregators.subspace`), in one of two ways:

* where the layer itself is no larger than a part of the stack, the sum is added up to a matrix of
  the layer's shape in one pass over the sources;
* where it is larger, a few adapters at a time are read again for each application, and the energy
  comes from the Gram matrices of pairs of such parts.

Memory depends on the layer's shape and the wanted rank, not on the number of adapters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch

from intarsia_aggregators.gram import symmetric_product
from intarsia_aggregators.recompression import Recompressed
from intarsia_aggregators.sources import ModuleTerms, Workspace
from intarsia_aggregators.spectrum import TOLERANCE
from intarsia_aggregators.subspace import Leading, Operator, block_width, leading_directions

# Bytes of one part's factors, and how many terms it has at most.
_TILE, _TERMS = 4 << 20, 512
# The same of the part that meets all others: the larger, the fewer times these are read.
_ROWS = 16 << 20
# Blocks of vectors that the iteration has at a time.
_BLOCKS = 14
# Bytes of the largest layer whose sum is held as a matrix.
_MATRIX = 24 << 20
# float32 decides where at least this share of the largest square is left out.
_SMALLEST_LEFT_OUT = 1e-4


class Summed(Operator, Protocol):
    """A module's sum by what it does to vectors of the layer's input."""

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """``W x``, shape (d_out, width)."""

    def energy(self) -> float:
        """Squared Frobenius norm of W; checks every number on the way.

        Raises:
            InputError: If a number or a source's product is not finite.
        """


class AccumulatedOperator:
    """``W^T W`` by the sum as a matrix of the layer's shape.

    Args:
        terms: The terms.
        workspace: For one part's factors and what is staged for it.
        kind: The type to compute in.

    Raises:
        InputError: If a number or a source's product is not finite.
    """

    def __init__(self, terms: ModuleTerms, workspace: Workspace, kind: torch.dtype) -> None:
        self._matrix = torch.zeros(terms.shape, dtype=kind)
        for tile, b, a, weights in _parts(terms, workspace, kind):
            tile.check_squares(b.square().sum(dim=0), a.square().sum(dim=1))
            self._matrix.addmm_(b * weights, a)

    def begin(self, width: int) -> torch.Tensor:
        """Random combinations of the layer's outputs, always the same ones."""
        return self._matrix.T @ _random(len(self._matrix), width, self._matrix.dtype)

    def metric(self, block: torch.Tensor) -> torch.Tensor:
        """The block itself: its columns are the vectors."""
        return block

    def apply(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """``W^T (W x)``."""
        return self._matrix.T @ (self._matrix @ image)

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """``W x``, shape (d_out, width)."""
        return self._matrix @ block

    def energy(self) -> float:
        """Squared Frobenius norm of W."""
        norm: torch.Tensor = torch.linalg.vector_norm(self._matrix, dtype=torch.float64)
        return float(norm) ** 2


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

    def begin(self, width: int) -> torch.Tensor:
        """Random combinations of the layer's outputs, always the same ones."""
        return self._back(_random(self._terms.shape[0], width, self._kind))

    def metric(self, block: torch.Tensor) -> torch.Tensor:
        """The block itself: its columns are the vectors."""
        return block

    def apply(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """``W^T (W x)`` in two passes."""
        return self._back(self.forward(image))

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """``W x``, shape (d_out, width)."""
        result = block.new_zeros((self._terms.shape[0], block.shape[1]))
        for _, b, a, weights in _parts(self._terms, self._workspace, self._kind):
            result.addmm_(b, weights[:, None] * (a @ block))
        return result

    def _back(self, block: torch.Tensor) -> torch.Tensor:
        result = block.new_zeros((self._terms.shape[1], block.shape[1]))
        for _, b, a, weights in _parts(self._terms, self._workspace, self._kind):
            result.addmm_(a.T, weights[:, None] * (b.T @ block))
        return result

    def energy(self) -> float:
        """Squared Frobenius norm of W, by pairs of parts; checks every number on the way.

        Raises:
            InputError: If a number or a source's product is not finite.
        """
        total = 0.0
        rows = _tiles(self._terms, _ROWS)
        for number, tile in enumerate(rows):
            b, a, weights = _part(tile, self._workspace, self._kind, "rows ")
            gram_b, gram_a = symmetric_product(b.T), symmetric_product(a)
            tile.check_squares(gram_b.diagonal(), gram_a.diagonal())
            total += _weighted_sum(gram_b, gram_a, weights, weights)
            for earlier in rows[:number]:
                for _, other_b, other_a, columns in _parts(earlier, self._workspace, self._kind):
                    total += 2.0 * _weighted_sum(b.T @ other_b, a @ other_a.T, weights, columns)
        # The iteration needs the room for its blocks.
        self._workspace.clear()
        return max(total, 0.0)


def is_accumulated(terms: ModuleTerms) -> bool:
    """Whether the sum is held as a matrix of the layer's shape rather than read again."""
    return 4 * terms.shape[0] * terms.shape[1] <= _MATRIX


def streamed_bytes(terms: ModuleTerms, rank: int) -> int:
    """Memory that :func:`recompress_streamed` takes, nearly."""
    blocks = _BLOCKS * 4 * block_width(rank) * max(terms.shape)
    if is_accumulated(terms):
        return _TILE + 4 * terms.shape[0] * terms.shape[1] + blocks
    return _TILE + max(_ROWS, blocks)


def recompress_streamed(terms: ModuleTerms, rank: int, workspace: Workspace) -> Recompressed:
    """The best approximation of a module's sum at a bounded rank, its stack never held.

    Args:
        terms: The terms.
        rank: How many directions to keep at most, at least 1.
        workspace: Memory to use.

    Returns:
        The approximation, as :func:`intarsia_aggregators.recompression.recompress` gives it. The
        energy, and so the share that is cut, is exact up to rounding.

    Raises:
        InputError: If a number or a source's product is not finite.
    """
    operator, energy, found = _leading(terms, rank, workspace, torch.float32)
    if not _decided(found, energy):
        operator, energy, found = _leading(terms, rank, workspace, torch.float64)
    root = found.squares.sqrt().sqrt().to(found.block.dtype)
    b = operator.forward(found.block) / root
    a = found.block.T * root[:, None]
    return Recompressed(
        b=b.float(),
        a=a.float().contiguous(),
        energy=energy,
        kept=min(float(found.squares.sum()), energy),
    )


def _leading(
    terms: ModuleTerms, rank: int, workspace: Workspace, kind: torch.dtype
) -> tuple[Summed, float, Leading]:
    make = AccumulatedOperator if is_accumulated(terms) else StreamedOperator
    operator: Summed = make(terms, workspace, kind)
    energy = operator.energy()
    size = min(terms.shape)
    return (
        operator,
        energy,
        leading_directions(operator, rank, size=size, energy=energy, tolerance=TOLERANCE),
    )


def _decided(found: Leading, energy: float) -> bool:
    """Whether float32's rounding is far below what is left out."""
    left_out = energy - float(found.squares.sum())
    largest = float(found.squares[0]) if len(found.squares) else 0.0
    enough = left_out >= _SMALLEST_LEFT_OUT * largest > 0.0
    return found.converged and math.isfinite(energy) and enough


_Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _parts(
    terms: ModuleTerms, workspace: Workspace, kind: torch.dtype
) -> Iterator[tuple[ModuleTerms, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The terms a few sources at a time: B, A and what multiplies each term."""
    for tile in _tiles(terms, _TILE):
        yield tile, *_part(tile, workspace, kind, "")


def _tiles(terms: ModuleTerms, size: int) -> list[ModuleTerms]:
    return terms.tiles(max(min(size // (4 * sum(terms.shape)), _TERMS), 1))


def _part(tile: ModuleTerms, workspace: Workspace, kind: torch.dtype, prefix: str) -> _Part:
    d_out, d_in = tile.shape
    b = workspace.take(f"{prefix}b", d_out, tile.rank)
    a = workspace.take(f"{prefix}a", tile.rank, d_in)
    tile.read_b(b, workspace)
    tile.read_a(a)
    return b.to(kind), a.to(kind), tile.coefficients.to(kind)


def _random(rows: int, width: int, kind: torch.dtype) -> torch.Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(0), dtype=kind)


def _weighted_sum(
    gram_b: torch.Tensor, gram_a: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> float:
    products = gram_b.double().mul_(gram_a)
    return float(rows.double() @ products @ columns.double())
