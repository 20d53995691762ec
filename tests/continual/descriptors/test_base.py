"""Descriptors: fitted alone, written bit for bit, and believed only where they are whole."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors import base
from intarsia_continual.descriptors.base import Descriptor, unit_rows
from intarsia_continual.descriptors.catalog import CATALOG, find_method, read_descriptor
from sklearn.preprocessing import normalize

ENCODER = bytes_digest(b"an encoder")
METHODS = pytest.mark.parametrize("method", [e.method for e in CATALOG], ids=lambda m: m.name)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
KEPT = st.dictionaries(
    st.from_regex(r"[a-z][a-z_]{0,10}", fullmatch=True),
    arrays(np.float32, array_shapes(max_dims=2, max_side=5), elements=FINITE),
    min_size=1,
    max_size=4,
)


def written(**arrays_by_name: np.ndarray) -> bytes:
    return Descriptor(method="centroid", encoder=ENCODER, arrays=arrays_by_name).to_bytes()


@given(KEPT)
@settings(max_examples=50)
def test_what_is_written_comes_back_bit_for_bit(kept) -> None:
    descriptor = Descriptor(method="centroid", encoder=ENCODER, arrays=kept)
    data = descriptor.to_bytes()
    found = Descriptor.from_bytes(data)
    assert (found.method, found.encoder) == ("centroid", ENCODER)
    assert found.arrays.keys() == kept.keys()
    for name, array in kept.items():
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()
    assert found.to_bytes() == data
    turned = Descriptor(method="centroid", encoder=ENCODER, arrays=dict(reversed(kept.items())))
    assert turned.to_bytes() == data
    assert safetensors.numpy.load(data).keys() == kept.keys()


@METHODS
def test_fitted_ones_come_back_and_score_alike(method, fitted, rows_of) -> None:
    descriptor = fitted(method, 1)
    found = read_descriptor(descriptor.to_bytes())
    queries = rows_of(5)
    assert (method.score(found, queries) == method.score(descriptor, queries)).all()


@METHODS
def test_a_truncated_one_is_refused_wherever_it_ends(method, fitted) -> None:
    data = fitted(method, 1, count=3, width=2).to_bytes()
    for end in range(len(data)):
        with pytest.raises(IntegrityError):
            Descriptor.from_bytes(data[:end])
    with pytest.raises(IntegrityError):
        Descriptor.from_bytes(data + b"\0")


@given(data=st.data())
def test_a_changed_byte_is_refused_or_another_whole_descriptor(data) -> None:
    whole = bytearray(written(centroid=np.ones(3, np.float32), held_out=np.zeros(0, np.float32)))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = Descriptor.from_bytes(bytes(whole))
    except IntegrityError:
        return
    assert found.to_bytes() == whole
    assert all(np.isfinite(array).all() for array in found.arrays.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(data) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_descriptor(data)
    assert "\n" not in str(caught.value)


def test_an_oversized_one_is_neither_written_nor_read(monkeypatch) -> None:
    data = written(centroid=np.zeros(512, np.float32))
    monkeypatch.setattr(base, "MAX_DESCRIPTOR_BYTES", len(data) - 1)
    with pytest.raises(IntegrityError, match="keep it under"):
        Descriptor.from_bytes(data)
    with pytest.raises(InputError, match="keep it under"):
        written(centroid=np.zeros(512, np.float32))
    monkeypatch.undo()
    with pytest.raises(InputError, match="keep less"):
        written(centroid=np.zeros(base.MAX_DESCRIPTOR_BYTES // 4 + 1, np.float32))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(number) -> None:
    good = written(centroid=np.full(4, 1.0, np.float32))
    one = np.float32(1.0).tobytes()
    bad = good[: good.rfind(one)] + np.float32(number).tobytes()
    with pytest.raises(IntegrityError, match="not finite"):
        Descriptor.from_bytes(bad)
    with pytest.raises(InputError, match="not finite"):
        written(centroid=np.full(4, number, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"centroid": np.zeros((2, 6), np.float32)},
        {"centroid": np.zeros(0, np.float32)},
        {"held_out": np.zeros(100, np.float32)},
        {"held_out": np.zeros((1, 101), np.float32)},
        {"more": np.zeros(6, np.float32)},
    ],
    ids=str,
)
def test_shapes_that_the_method_does_not_keep_are_refused(change, fitted) -> None:
    whole = fitted(find_method("centroid").method, 1)
    changed = replace(whole, arrays={**whole.arrays, **change})
    with pytest.raises(IntegrityError, match="fit it again from its texts"):
        read_descriptor(changed.to_bytes())


def test_arrays_of_unequal_width_are_refused(fitted) -> None:
    whole = fitted(find_method("gaussian").method, 1)
    for name in ("mean", "directions", "variances", "rest"):
        array = whole.arrays[name]
        cut = {**whole.arrays, name: np.concatenate([array, array])}
        with pytest.raises(IntegrityError, match="shape"):
            read_descriptor(replace(whole, arrays=cut).to_bytes())
    rest = {name: array for name, array in whole.arrays.items() if name != "mean"}
    with pytest.raises(IntegrityError, match="arrays: directions, held_out, rest, variances"):
        read_descriptor(replace(whole, arrays=rest).to_bytes())


def test_other_files_are_refused() -> None:
    whole = np.zeros(4, np.float32)
    metadata = {"format": base.FORMAT, "method": "centroid", "encoder": ENCODER}
    for change in ({"format": "pt"}, {"method": "../x"}, {"encoder": "none"}, {"more": "text"}):
        data = safetensors.numpy.save({"centroid": whole}, metadata={**metadata, **change})
        with pytest.raises(IntegrityError):
            Descriptor.from_bytes(data)
    for kind in (np.float64, np.int32):
        data = safetensors.numpy.save({"centroid": whole.astype(kind)}, metadata=metadata)
        with pytest.raises(IntegrityError, match="use float32"):
            Descriptor.from_bytes(data)
    many = {f"x{'y' * n}": whole for n in range(base.MAX_ARRAYS + 1)}
    with pytest.raises(IntegrityError, match="9 arrays"):
        Descriptor.from_bytes(safetensors.numpy.save(many, metadata=metadata))
    header = json.dumps({"__metadata__": metadata}).encode()
    with pytest.raises(IntegrityError, match="0 arrays"):
        Descriptor.from_bytes(len(header).to_bytes(8, "little") + header)


def test_arrays_cannot_be_changed(fitted, rows_of) -> None:
    descriptor = fitted(CATALOG[0].method, 1)
    with pytest.raises(ValueError, match="read-only"):
        descriptor.arrays["documents"][0, 0] = 1
    with pytest.raises(TypeError):
        descriptor.arrays["documents"] = rows_of(1)  # type: ignore[index]
    mine = rows_of(1)
    kept = Descriptor(method="centroid", encoder=ENCODER, arrays={"centroid": mine})
    mine[:] = 0
    assert kept.arrays["centroid"].any()


@METHODS
def test_fitting_another_adapter_changes_nothing(method, fitted) -> None:
    alone = fitted(method, 1).to_bytes()
    fitted(method, 2)
    assert fitted(method, 1).to_bytes() == alone
    assert fitted(method, 2).to_bytes() != alone


@METHODS
def test_left_out_scores_are_those_of_fits_without_them(method, rows_of) -> None:
    rows = rows_of(3, count=5)
    generator = np.random.default_rng(0)
    descriptor = method.fit(rows, generator, encoder=ENCODER)
    expected = []
    for place in range(5):
        others = method.fit(np.delete(rows, place, axis=0), generator, encoder=ENCODER)
        expected.append(method.score(others, rows[[place]])[0])
    held_out = descriptor.arrays["held_out"]
    # Five texts: the quarters between the least and the greatest are scores themselves.
    assert held_out[::25] == pytest.approx(np.sort(expected), abs=1e-6)
    assert (np.diff(held_out) >= 0).all()
    assert descriptor.held_out_score(0.25) == pytest.approx(np.sort(expected)[1], abs=1e-6)
    assert descriptor.held_out_score(0.0) == pytest.approx(min(expected), abs=1e-6)


@METHODS
def test_probes_decide_only_how_left_out_texts_score(method, rows_of) -> None:
    rows, probes = rows_of(3), rows_of(4)
    one, other = (
        method.fit(rows, np.random.default_rng(0), encoder=ENCODER, probes=given)
        for given in (rows, probes)
    )
    plain = method.fit(rows, np.random.default_rng(0), encoder=ENCODER)
    assert one.arrays["held_out"] == pytest.approx(plain.arrays["held_out"], abs=1e-5)
    assert other.arrays["held_out"].max() < one.arrays["held_out"].min()
    for name in one.arrays.keys() - {"held_out"}:
        assert (one.arrays[name] == other.arrays[name]).all()
    with pytest.raises(InputError, match="probes"):
        method.fit(rows, np.random.default_rng(0), encoder=ENCODER, probes=probes[1:])


@METHODS
def test_one_text_is_enough_and_none_is_not(method, fitted, rows_of) -> None:
    descriptor = read_descriptor(fitted(method, 1, count=1).to_bytes())
    assert descriptor.held_out_score(0.05) == -np.inf
    assert np.isfinite(method.score(descriptor, rows_of(2))).all()
    with pytest.raises(InputError, match="texts of an adapter: none; give at least one"):
        method.fit(np.zeros((0, 6), np.float32), np.random.default_rng(0), encoder=ENCODER)


@METHODS
def test_equal_and_zero_texts_can_be_described(method) -> None:
    for rows in (np.ones((9, 6), np.float32), np.zeros((9, 6), np.float32)):
        descriptor = method.fit(rows, np.random.default_rng(0), encoder=ENCODER)
        assert np.isfinite(method.score(descriptor, np.eye(6, dtype=np.float32))).all()


@METHODS
def test_malformed_embeddings_are_refused(method) -> None:
    generator = np.random.default_rng(0)
    for rows, message in (
        (np.zeros(6, np.float32), "shape"),
        (np.zeros((3, 0), np.float32), "shape"),
        (np.zeros((1, base.MAX_WIDTH + 1), np.float32), "shape"),
        (np.full((3, 6), np.nan, np.float32), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            method.fit(rows, generator, encoder=ENCODER)


@given(arrays(np.float32, (3, 4), elements=FINITE))
def test_rows_are_scaled_to_length_one(rows) -> None:
    found = unit_rows(rows)
    # Scaled up first: the squares of the smallest float32 are zero even in float64.
    largest = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True)
    expected = normalize(rows / np.where(largest > 0, largest, 1))
    assert found == pytest.approx(expected, abs=1e-12)
