"""Filtered subspace iteration against full decompositions, on spectra of every shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from intarsia_aggregators.subspace import Leading, block_width, leading_directions

SIZE = 400
TOLERANCE = 2e-3


@dataclass
class DenseOperator:
    """``W^T W`` of a dense matrix; the vectors are their own coefficients."""

    matrix: torch.Tensor
    applications: int = 0

    def begin(self, width: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        block = torch.randn((len(self.matrix), width), generator=generator)
        return self.matrix.T @ block.to(self.matrix)

    def metric(self, block: torch.Tensor) -> torch.Tensor:
        return block

    def apply(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        self.applications += 1
        return self.matrix.T @ (self.matrix @ image)


def spectrum(kind: str) -> np.ndarray:
    index = np.arange(1, SIZE + 1)
    return {
        "flat": np.linspace(1.0, 0.3, SIZE),
        "equal": np.ones(SIZE),
        "slow": index**-0.5,
        "fast": index**-1.0,
        "steps": np.repeat(10.0 ** -np.arange(0, 4, 0.5), SIZE // 8),
        "low": np.where(index <= 60, 1.0 / index, 1e-3),
        "one": np.where(index == 1, 1.0, 0.02),
    }[kind]


def found(kind: str, count: int, dtype: torch.dtype) -> tuple[Leading, float, float, int]:
    """What was found, the energy it really keeps, the best, and how many applications it took."""
    sigma = spectrum(kind)
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.linalg.qr(torch.randn((SIZE, SIZE), generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    matrix = (left * torch.from_numpy(sigma)) @ right.T
    energy = float((sigma**2).sum())
    operator = DenseOperator(matrix.to(dtype))
    leading = leading_directions(operator, count, size=SIZE, energy=energy, tolerance=TOLERANCE)
    basis = torch.linalg.qr(leading.block.double())[0]
    kept = float((matrix @ basis).square().sum())
    return leading, kept, float((sigma[:count] ** 2).sum()), operator.applications


@pytest.mark.parametrize("kind", ["flat", "equal", "slow", "fast", "steps", "low", "one"])
@pytest.mark.parametrize("count", [1, 7, 50, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_called_converged_is_within_the_tolerance(kind, count, dtype):
    leading, kept, best, applications = found(kind, count, dtype)
    energy = float((spectrum(kind) ** 2).sum())
    assert leading.converged
    assert leading.block.shape == leading.image.shape == (SIZE, count)
    assert best - kept <= TOLERANCE * (energy - best) + 1e-6 * energy
    assert float(leading.squares.sum()) == pytest.approx(kept, rel=1e-3)
    inner = leading.block.T @ leading.image
    assert torch.allclose(inner.double(), torch.eye(count, dtype=torch.float64), atol=1e-3)
    assert (leading.squares.diff() <= 1e-6 * leading.squares[0]).all()
    assert applications <= 60


def test_fewer_directions_than_wanted_are_all_that_there_are():
    generator = torch.Generator().manual_seed(2)
    u = torch.linalg.qr(torch.randn((SIZE, 5), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn((SIZE, 5), generator=generator, dtype=torch.float64))[0]
    leading = leading_directions(
        DenseOperator(u @ v.T), 20, size=SIZE, energy=5.0, tolerance=TOLERANCE
    )
    assert leading.converged and leading.block.shape[1] == 5
    assert torch.allclose(leading.squares, torch.ones(5, dtype=torch.float64))


def test_nothing_has_no_directions():
    operator = DenseOperator(torch.zeros((SIZE, SIZE), dtype=torch.float64))
    leading = leading_directions(operator, 3, size=SIZE, energy=0.0, tolerance=TOLERANCE)
    assert leading.converged and leading.block.shape == (SIZE, 0)


def test_the_same_product_gives_the_same_bytes():
    first, second = (found("slow", 20, torch.float32)[0] for _ in range(2))
    assert torch.equal(first.block, second.block)


def test_the_block_is_wider_than_what_is_wanted():
    assert [block_width(count) for count in (1, 32, 64)] == [17, 48, 96]
