"""Offline aggregation against the dense float64 sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from intarsia_aggregators.compatibility import normalised_weights
from intarsia_aggregators.offline import aggregate_adapters
from intarsia_client.errors import InputError
from intarsia_client.peft_files import decode_adapter, encode_adapter
from intarsia_client.wire import Adapter, LowRankFactors


def adapter(seed: int, rank: int, scaling: float = 2.0, modules=("q", "v"), **changes) -> Adapter:
    generator = np.random.default_rng(seed)
    return Adapter(
        base=changes.pop("base", "base"),
        task="causal-lm",
        modules={
            name: LowRankFactors(
                a=generator.standard_normal((rank, 40)).astype(np.float32),
                b=generator.standard_normal((48, rank)).astype(np.float32),
                scaling=scaling,
            )
            for name in modules
        },
        **changes,
    )


SOURCES = [adapter(1, 4), adapter(2, 16, 0.5), adapter(3, 8, 16 / np.sqrt(8))]
WEIGHTS = [1.0, 2.0, 5.0]


def dense(name: str) -> np.ndarray:
    return sum(
        w / 8.0 * source.modules[name].product()
        for w, source in zip(WEIGHTS, SOURCES, strict=True)
        if name in source.modules
    )


def test_without_rank_the_sum_is_exact_at_the_summed_rank():
    result = aggregate_adapters(SOURCES, weights=WEIGHTS)
    encoded = encode_adapter(result.adapter)
    read = decode_adapter(encoded.configuration, encoded.tensors)
    for name in ("q", "v"):
        assert read.modules[name].rank == 28
        error = np.linalg.norm(read.modules[name].product() - dense(name))
        assert error <= 1e-6 * np.linalg.norm(dense(name))
        assert result.cut[name] == 0.0


@pytest.mark.parametrize("rank", [1, 5, 28, 100])
def test_with_rank_it_is_the_best_approximation_and_says_what_was_cut(rank):
    result = aggregate_adapters(SOURCES, weights=WEIGHTS, rank=rank)
    for name in ("q", "v"):
        sigma = np.linalg.svd(dense(name), compute_uv=False)
        error = np.linalg.norm(result.adapter.modules[name].product() - dense(name))
        assert error**2 == pytest.approx((sigma[rank:] ** 2).sum(), rel=1e-5, abs=1e-8)
        share = (sigma[rank:] ** 2).sum() / (sigma**2).sum()
        assert result.cut[name] == pytest.approx(share, rel=1e-5, abs=1e-12)


def test_a_module_that_one_source_lacks_counts_as_zero_there():
    result = aggregate_adapters([adapter(1, 4), adapter(2, 8, modules=("q",))])
    expected = 0.5 * adapter(1, 4).modules["v"].product()
    assert np.allclose(result.adapter.modules["v"].product(), expected, rtol=1e-5, atol=1e-6)


def test_equal_weights_are_the_default():
    assert normalised_weights([], 4) == (0.25,) * 4


@pytest.mark.parametrize(
    ("weights", "count", "words"),
    [
        ([1.0], 2, "1 for 2 adapters"),
        ([1.0, -1.0], 2, "-1.0"),
        ([float("nan"), 1.0], 2, "nan"),
        ([0.0, 0.0], 2, "above 0"),
        ([], 0, "at least one adapter"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights, count, words):
    with pytest.raises(InputError, match=words):
        normalised_weights(weights, count)


def test_adapters_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="adapter 2's base model: other"):
        aggregate_adapters([adapter(1, 4), adapter(2, 4, base="other")])
    odd = adapter(2, 4)
    narrow = LowRankFactors(
        a=odd.modules["q"].a[:, :10], b=odd.modules["q"].b, scaling=odd.modules["q"].scaling
    )
    with pytest.raises(InputError, match="adapter 2's module q"):
        aggregate_adapters([adapter(1, 4), replace(odd, modules={"q": narrow})])
    with pytest.raises(InputError, match="--rank: 0"):
        aggregate_adapters([adapter(1, 4)], rank=0)
