"""Continual metrics against matrices whose figures are known, and their algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from intarsia_client.errors import InputError
from intarsia_continual.continual_metrics import (
    average_at_end,
    averages_over_arrivals,
    backward_transfer,
    forgetting,
    forward_transfer,
)

# Three groups: the first falls from .9 over .95 to .6, the second from .8 to .7.
FALLING = [[0.9, 0.2, 0.1], [0.95, 0.8, 0.3], [0.6, 0.7, 0.85]]

matrices = st.integers(2, 6).flatmap(
    lambda count: arrays(np.float64, (count, count), elements=st.floats(-50, 50))
)


def test_figures_of_a_small_matrix() -> None:
    assert average_at_end(FALLING) == pytest.approx((0.6 + 0.7 + 0.85) / 3)
    assert averages_over_arrivals(FALLING) == pytest.approx([0.9, (0.95 + 0.8) / 2, 2.15 / 3])
    assert backward_transfer(FALLING) == pytest.approx((-0.3 - 0.1) / 2)
    assert forgetting(FALLING) == pytest.approx((0.35 + 0.1) / 2)
    assert forward_transfer(FALLING, [0.0, 0.1, 0.05]) == pytest.approx((0.1 + 0.25) / 2)


@given(matrices)
@settings(deadline=None)
def test_nothing_is_transferred_backwards_where_nothing_changes_after_it_came(
    matrix: np.ndarray,
) -> None:
    kept = np.triu(matrix, 1) + np.tril(np.tile(np.diagonal(matrix), (len(matrix), 1)))
    assert backward_transfer(kept) == 0.0
    assert forgetting(kept) == 0.0
    assert average_at_end(kept) == pytest.approx(float(np.diagonal(matrix).mean()), abs=1e-9)


@given(matrices, st.floats(-5, 5), st.floats(0.1, 5))
@settings(deadline=None)
def test_transfers_scale_with_the_measure_and_forget_its_zero(
    matrix: np.ndarray, shift: float, scale: float
) -> None:
    moved = scale * matrix + shift
    start = matrix[0]
    assert backward_transfer(moved) == pytest.approx(scale * backward_transfer(matrix), abs=1e-9)
    assert forgetting(moved) == pytest.approx(scale * forgetting(matrix), abs=1e-9)
    assert forward_transfer(moved, scale * start + shift) == pytest.approx(
        scale * forward_transfer(matrix, start), abs=1e-9
    )
    assert averages_over_arrivals(moved)[-1] == pytest.approx(average_at_end(moved))


@given(matrices)
@settings(deadline=None)
def test_forgetting_is_at_least_minus_the_backward_transfer(matrix: np.ndarray) -> None:
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-9


def test_entries_that_do_not_count_may_be_missing() -> None:
    holes = np.array(FALLING)
    holes[np.triu_indices(3, 1)] = np.nan
    assert backward_transfer(holes) == backward_transfer(FALLING)
    assert forgetting(holes) == forgetting(FALLING)
    assert averages_over_arrivals(holes) == pytest.approx(averages_over_arrivals(FALLING))
    with pytest.raises(InputError, match="not finite"):
        forward_transfer(holes, [0.0, 0.0, 0.0])
    holes[2, 0] = np.nan
    for figure in (average_at_end, averages_over_arrivals, backward_transfer, forgetting):
        with pytest.raises(InputError, match="not finite"):
            figure(holes)


def test_what_is_no_such_matrix_is_refused() -> None:
    for wrong in (np.zeros((2, 3)), np.zeros(4), np.zeros((0, 0))):
        with pytest.raises(InputError, match="matrix of results"):
            average_at_end(wrong)
    for figure in (backward_transfer, forgetting):
        with pytest.raises(InputError, match="at least 2"):
            figure([[1.0]])
    with pytest.raises(InputError, match="measures before"):
        forward_transfer(FALLING, [0.0, 0.0])
