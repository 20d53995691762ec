"""Recompression against the dense float64 singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_aggregators import recompression
from intarsia_aggregators.recompression import Recompressed, recompress


def dense_of(b: np.ndarray, a: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return (b.astype(np.float64) * coefficients) @ a.astype(np.float64)


def error(found: Recompressed, dense: np.ndarray) -> float:
    """Relative Frobenius error."""
    product = found.b.double().numpy() @ found.a.double().numpy()
    scale = np.linalg.norm(dense)
    return float(np.linalg.norm(product - dense) / scale) if scale else float(np.abs(product).sum())


def least_error(dense: np.ndarray, rank: int) -> float:
    sigma = np.linalg.svd(dense, compute_uv=False)
    total = float((sigma**2).sum())
    return float(np.sqrt((sigma[rank:] ** 2).sum() / total)) if total else 0.0


@st.composite
def stacks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stacks as they come: rank-deficient, with zeros and duplicates, badly scaled, both signs."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d_out, d_in = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        rank = draw(st.integers(0, 8))
        b = generator.standard_normal((d_out, rank))
        a = generator.standard_normal((rank, d_in))
        kind = draw(st.sampled_from(["plain", "zero", "again", "flat", "gauge", "steep"]))
        if kind == "zero":
            b[:, : rank // 2] = 0.0
        elif kind == "again" and parts:
            b, a = parts[-1]
        elif kind == "flat" and rank:
            a[:] = a[:1]
        elif kind == "gauge":
            gauge = 10.0 ** draw(st.integers(-12, 12))
            b, a = b * gauge, a / gauge
        elif kind == "steep":
            b = b * 10.0 ** -np.arange(rank)
        parts.append((b, a))
    b = np.concatenate([part for part, _ in parts], axis=1).astype(np.float32)
    a = np.concatenate([part for _, part in parts], axis=0).astype(np.float32)
    coefficients = generator.uniform(-2.0, 2.0, b.shape[1])
    return b, a, coefficients * draw(st.sampled_from([1.0, 1e-6, 1e6]))


@settings(max_examples=200, deadline=None)
@given(stacks(), st.integers(1, 45), st.booleans())
def test_it_is_the_best_approximation(stack, rank, exact):
    b, a, coefficients = stack
    dense = dense_of(b, a, coefficients)
    found = recompress(
        torch.from_numpy(b),
        torch.from_numpy(a),
        rank,
        coefficients=torch.from_numpy(coefficients),
        exact=exact,
    )
    assert found.b.dtype == found.a.dtype == torch.float32
    assert found.b.shape[1] == found.a.shape[0] <= min(rank, b.shape[1])
    best = least_error(dense, rank)
    assert error(found, dense) <= best * (1.0 + 1e-6 if exact else 1.001) + 1e-6
    assert found.energy == pytest.approx(np.linalg.norm(dense) ** 2, rel=1e-5)
    assert found.cut == pytest.approx(best**2, rel=1e-3, abs=1e-6)
    if len(found.b.T):
        sizes = found.b.double().norm(dim=0) * found.a.double().norm(dim=1)
        assert (sizes.diff() <= 1e-5 * sizes[0]).all()
        # A hundredth of each norm, and of every direction what float32 rounds of the largest.
        b_squared, a_squared = (
            found.b.double().square().sum(dim=0),
            found.a.double().square().sum(dim=1),
        )
        assert ((b_squared - a_squared).abs() <= 0.02 * a_squared + 1e-6 * sizes[0]).all()


@settings(max_examples=50, deadline=None)
@given(stacks(), st.integers(1, 45))
def test_in_float64_it_is_exact_far_below_what_is_promised(stack, rank):
    b, a, coefficients = stack
    dense = dense_of(b, a, coefficients)
    found = recompress(
        torch.from_numpy(b).double(),
        torch.from_numpy(a).double(),
        rank,
        coefficients=torch.from_numpy(coefficients),
    )
    assert found.b.dtype == torch.float64
    assert error(found, dense) <= least_error(dense, rank) * (1.0 + 1e-9) + 1e-7


def wide_stack(kind: str, count: int = 400, width: int = 700) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    b = torch.randn((width, count), generator=generator)
    a = torch.randn((count, width), generator=generator)
    if kind == "shared":
        spread = torch.diag(1.0 / torch.arange(1, 61) ** 0.5)
        u = torch.linalg.qr(torch.randn((width, 60), generator=generator))[0]
        v = torch.linalg.qr(torch.randn((width, 60), generator=generator))[0]
        b = 30 * u @ spread @ torch.randn((60, count), generator=generator) + 0.5 * b
        a = 30 * torch.randn((count, 60), generator=generator) @ spread @ v.T + 0.5 * a
    elif kind == "equal":
        b, a = b[:, :20].repeat(1, count // 20), a[:20].repeat(count // 20, 1)
    elif kind == "orthogonal":
        b, a = torch.linalg.qr(b)[0], torch.linalg.qr(a.T)[0].T.contiguous()
    return b, a


@pytest.mark.parametrize("kind", ["independent", "shared", "equal", "orthogonal"])
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_few_directions_of_many_are_within_a_thousandth_of_the_best(kind, rank):
    b, a = wide_stack(kind)
    dense = b.double().numpy() @ a.double().numpy()
    found = recompress(b, a, rank)
    best = least_error(dense, rank)
    assert error(found, dense) <= 1.001 * best + 1e-6
    assert found.cut == pytest.approx(best**2, rel=2.1e-3, abs=1e-9)
    assert torch.equal(found.b, recompress(b, a, rank).b)


def test_the_quick_way_is_the_one_that_is_tested(monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(recompression, "exact_spectrum", never)
    for kind in ("independent", "shared"):
        recompress(*wide_stack(kind), 40)
    with pytest.raises(AssertionError):
        recompress(*wide_stack("equal"), 40)


def test_terms_that_nearly_cancel_leave_what_remains():
    generator = torch.Generator().manual_seed(9)
    b = torch.randn((60, 6), generator=generator, dtype=torch.float64)
    a = torch.randn((6, 50), generator=generator, dtype=torch.float64)
    rest = 1e-6 * torch.randn((60, 6), generator=generator, dtype=torch.float64)
    stacked_b, stacked_a = torch.cat([b + rest, -b], 1), torch.cat([a, a], 0)
    found = recompress(stacked_b, stacked_a, 12)
    dense = ((b + rest) - b) @ a
    assert error(found, dense.numpy()) < 1e-6
    assert found.b.shape[1] == 6


def test_what_is_all_zero_has_rank_0():
    found = recompress(torch.zeros((5, 3)), torch.ones((3, 7)), 2)
    assert found.b.shape == (5, 0) and found.a.shape == (0, 7)
    assert (found.energy, found.kept, found.cut) == (0.0, 0.0, 0.0)
    empty = recompress(torch.zeros((5, 0)), torch.zeros((0, 7)), 2)
    assert empty.b.shape == (5, 0)
