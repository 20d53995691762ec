"""bfloat16 and int8 blocks: how far values move, and that what came back stays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from intarsia_client.errors import InputError
from intarsia_client.transport.precision import (
    BLOCK,
    check_scales,
    from_bfloat16,
    is_finite_bfloat16,
    number_of_blocks,
    quantise,
    quantises_to_zero,
    restore,
    rounded_change,
    to_bfloat16,
)
from intarsia_client.wire import FloatArray

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=150), elements=finite)
SMALLEST = 127 * float(np.finfo(np.float32).tiny)


@settings(deadline=None, max_examples=50)
@given(vectors)
def test_a_value_moves_by_half_its_scale_at_most(values: FloatArray) -> None:
    whole, scales = quantise(values)
    restored = restore(whole, scales)
    assert whole.dtype == np.int8 and abs(whole.astype(int)).max(initial=0) <= 127
    assert scales.shape == (len(values), number_of_blocks(values.shape[1]))
    assert np.isfinite(restored).all()
    check_scales("scales", scales)
    own = np.repeat(scales, BLOCK, axis=1)[:, : values.shape[1]].astype(np.float64)
    moved = np.abs(restored.astype(np.float64) - values)
    assert (moved <= np.where(own > 0.0, own / 2, SMALLEST)).all()
    assert (restored[values == 0.0] == 0.0).all()
    assert quantises_to_zero(values) == (not restored.any())


@settings(deadline=None, max_examples=50)
@given(vectors)
def test_what_came_back_is_written_the_same_again(values: FloatArray) -> None:
    whole, scales = quantise(values)
    again, scales_again = quantise(restore(whole, scales))
    np.testing.assert_array_equal(again, whole)
    np.testing.assert_array_equal(scales_again, scales)


def test_blocks_do_not_reach_over_vectors_and_keep_small_values_apart() -> None:
    values = np.concatenate([np.full(64, 1e-3), np.full(64, 10.0), np.full(2, 1e-6)])
    values = np.stack([values, 1e3 * values]).astype(np.float32)
    whole, scales = quantise(values)
    assert scales.shape == (2, 3)
    np.testing.assert_allclose(restore(whole, scales), values, rtol=1e-4)


def test_no_vectors_are_no_bytes() -> None:
    whole, scales = quantise(np.zeros((0, 70), np.float32))
    assert whole.shape == (0, 70) and scales.shape == (0, 2)
    assert restore(whole, scales).shape == (0, 70)


@settings(deadline=None, max_examples=50)
@given(vectors, st.integers(0, 99))
def test_no_change_is_none(values: FloatArray, seed: int) -> None:
    assert (rounded_change(values, values) == values).all()
    other = np.clip(values, -1e30, 1e30)
    other[:1] += np.float32(np.random.default_rng(seed).normal())
    arrived = rounded_change(other, np.clip(values, -1e30, 1e30))
    np.testing.assert_array_equal(arrived[1:], np.clip(values, -1e30, 1e30)[1:])


@pytest.mark.parametrize("scale", [-1.0, np.nan, np.inf, -np.inf, 3e36])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    scales = np.array([[0.0, 1.0, scale]], dtype=np.float32)
    with pytest.raises(InputError, match="update of q: not finite; send scales that are finite"):
        check_scales("update of q", scales)
    check_scales("update of q", np.array([[0.0, 1e-45, 2.6e36]], dtype=np.float32))


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, array_shapes(max_dims=2), elements=st.floats(width=32)))
def test_bfloat16_is_torchs(values: FloatArray) -> None:
    expected = torch.from_numpy(values).to(torch.bfloat16)
    halves = to_bfloat16(values[np.isfinite(values)])
    np.testing.assert_array_equal(halves, expected.view(torch.uint16).numpy()[np.isfinite(values)])
    wide = from_bfloat16(halves)
    np.testing.assert_array_equal(wide, expected.float().numpy()[np.isfinite(values)])
    assert is_finite_bfloat16(halves) == bool(np.isfinite(wide).all())
    np.testing.assert_array_equal(to_bfloat16(wide[np.isfinite(wide)]), halves[np.isfinite(wide)])
