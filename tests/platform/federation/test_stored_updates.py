"""Updates that stay on disk are what was admitted, in every encoding."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from intarsia_client.errors import IntegrityError
from intarsia_client.start import client_start
from intarsia_client.transport import decode_update, encode_update
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_platform.federation.stored_updates import stored_update
from intarsia_platform.registry.store import ContentStore

SHAPES = {"model.q": (12, 150), "model.v": (70, 16)}


def adapter(rank: int, seed: int) -> Adapter:
    generator = np.random.default_rng(seed)
    return Adapter(
        base="base",
        task="sequence-classification",
        modules={
            name: LowRankFactors(
                a=generator.standard_normal((rank, d_in)).astype(np.float32),
                b=generator.standard_normal((d_out, rank)).astype(np.float32),
                scaling=2.0,
            )
            for name, (d_out, d_in) in SHAPES.items()
        },
        dense={"score.weight": generator.standard_normal((3, 5)).astype(np.float32)},
    )


@pytest.mark.parametrize("factors", ["both", "a", "b", "none"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_what_is_opened_is_what_was_decoded(precision, factors, tmp_path):
    start = client_start(adapter(6, 0), rank=4, scaling=2.0, seed=0).trainable
    trained = adapter(4, 1)
    encoded = encode_update(trained, start, precision, factors=factors)
    path = tmp_path / "tensors"
    path.write_bytes(encoded.tensors)
    expected = decode_update(encoded, start, factors=factors)
    found = stored_update(encoded.configuration, path, start, factors)
    assert sorted(found.modules) == sorted(expected.modules)
    for name in expected.modules:
        for side in ("a", "b"):
            one, other = (getattr(x.modules[name], side) for x in (found, expected))
            assert np.array_equal(one, other)
        assert found.modules[name].scaling == expected.modules[name].scaling
    assert np.array_equal(found.dense["score.weight"], expected.dense["score.weight"])


@pytest.mark.parametrize(
    ("precision", "factors"), [("float32", "both"), ("bfloat16", "b"), ("int8", "both")]
)
def test_many_open_updates_take_no_room(precision, factors, tmp_path):
    generator = np.random.default_rng(0)
    wide = Adapter(
        base="base",
        task="causal-lm",
        modules={
            f"layer.{number}": LowRankFactors(
                a=generator.standard_normal((8, 4096)).astype(np.float32),
                b=generator.standard_normal((4096, 8)).astype(np.float32),
                scaling=1.0,
            )
            for number in range(16)
        },
    )
    start = client_start(wide, rank=8, scaling=1.0, seed=0).trainable
    encoded = encode_update(wide, start, precision, factors=factors)
    path = tmp_path / "tensors"
    path.write_bytes(encoded.tensors)
    one_module = 2 * 8 * 4096 * 4
    tracemalloc.start()
    try:
        opened = [stored_update(encoded.configuration, path, start, factors) for _ in range(50)]
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for name in wide.modules:
            for update in opened:
                assert update.modules[name].rank == 8
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 50 of them would be 200 MB; what is held is headers.
    assert held < 50 * 60_000
    assert peak - held < 12 * one_module


def test_a_store_gives_verified_files_wherever_it_lies(tmp_path):
    for url in (str(tmp_path / "store"), f"memory://{tmp_path.name}"):
        store = ContentStore(url)
        digest = store.put(b"some bytes")
        path = store.as_file(digest, tmp_path / "copies")
        assert path.read_bytes() == b"some bytes"
        assert store.as_file(digest, tmp_path / "copies") == path
    local = ContentStore(str(tmp_path / "store"))
    blob = local.as_file(digest, tmp_path)
    assert blob.is_relative_to(tmp_path / "store")
    blob.write_bytes(b"some bytea")
    with pytest.raises(IntegrityError, match="hashes to"):
        local.as_file(digest, tmp_path)
    with pytest.raises(IntegrityError, match="is not in"):
        local.as_file("sha256:" + "0" * 64, tmp_path)
