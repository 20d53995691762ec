"""Offline aggregation against the dense float64 sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_aggregators.catalog import CATALOG
from intarsia_aggregators.compatibility import normalised_weights
from intarsia_aggregators.offline import (
    OFFLINE_METHODS,
    OfflineSum,
    aggregate_adapters,
    check_offline_method,
    write_sum,
)
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.opened import open_adapter
from intarsia_client.peft_files import (
    adapter_digest,
    decode_adapter,
    encode_adapter,
    read_adapter,
    write_adapter,
)
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
        ([1.0, float("inf")], 2, "inf"),
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


def test_weights_whose_sum_is_beyond_a_float_are_shares_all_the_same():
    assert normalised_weights([1e308, 1e308], 2) == (0.5, 0.5)
    assert normalised_weights([0.0, 3.0], 2) == (0.0, 1.0)


@pytest.fixture
def folders(tmp_path):
    found = [tmp_path / name for name in ("ann", "bob", "cem")]
    for folder, source in zip(found, SOURCES, strict=True):
        write_adapter(folder, source)
    return found


def opened_sum(folders, **options) -> OfflineSum:
    adapters = [open_adapter(folder) for folder in folders]
    return OfflineSum(adapters, labels=[folder.name for folder in folders], **options)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"rank": 5}, {"rank": 100}, {"method": "hetlora"}, {"method": "flexlora"}]
)
def test_what_is_written_is_what_is_formed_in_memory(folders, tmp_path, options, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        told = []
        whole = opened_sum(folders, weights=WEIGHTS, **options)
        (tmp_path / "out").mkdir()
        report = write_sum(whole, tmp_path / "out", lambda *done: told.append(done))
        result = aggregate_adapters(SOURCES, weights=WEIGHTS, **options)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert told == [(1, 2), (2, 2)]
    assert report.digest == adapter_digest(result.adapter)
    assert report.digest == adapter_digest(read_adapter(tmp_path / "out"))
    assert report.rank == result.adapter.rank
    assert report.cut == result.cut
    if "method" in options and options["method"] == "hetlora":
        assert report.cut_total is None and report.cut == {}
    else:
        energies = {name: np.linalg.norm(dense(name)) ** 2 for name in ("q", "v")}
        wanted = sum(energies[name] * result.cut[name] for name in energies)
        assert report.cut_total == pytest.approx(wanted / sum(energies.values()), rel=1e-5)


def test_adapters_that_repeat_each_other_have_the_rank_of_one():
    result = aggregate_adapters([adapter(1, 4)] * 5, rank=12)
    for name in ("q", "v"):
        factors = result.adapter.modules[name]
        assert factors.rank == 4 and result.cut[name] == 0.0
        wanted = adapter(1, 4).modules[name].product()
        assert np.linalg.norm(factors.product() - wanted) < 1e-6 * np.linalg.norm(wanted)


def test_one_adapter_alone_is_itself(tmp_path):
    write_adapter(tmp_path / "one", adapter(7, 4, 1.0))
    (tmp_path / "out").mkdir()
    write_sum(opened_sum([tmp_path / "one"]), tmp_path / "out")
    found, wanted = read_adapter(tmp_path / "out"), adapter(7, 4, 1.0)
    for name in ("q", "v"):
        assert np.array_equal(found.modules[name].a, wanted.modules[name].a)
        assert np.array_equal(found.modules[name].b, wanted.modules[name].b)


def test_opposite_adapters_leave_nothing():
    other = replace(
        adapter(1, 4),
        modules={n: replace(f, b=-f.b) for n, f in adapter(1, 4).modules.items()},
    )
    result = aggregate_adapters([adapter(1, 4), other], rank=3)
    assert all(factors.rank == 0 for factors in result.adapter.modules.values())
    encoded = encode_adapter(result.adapter)
    assert not decode_adapter(encoded.configuration, encoded.tensors).modules["q"].b.any()


def test_fedit_is_the_mean_of_the_factors():
    sources = [adapter(seed, 4) for seed in (1, 2, 3)]
    result = aggregate_adapters(sources, weights=WEIGHTS, method="fedit")
    for name in ("q", "v"):
        found = result.adapter.modules[name]
        for side in ("a", "b"):
            mean = sum(
                weight / 8.0 * getattr(source.modules[name], side).astype(np.float64)
                for weight, source in zip(WEIGHTS, sources, strict=True)
            )
            assert np.allclose(getattr(found, side), mean, rtol=1e-6)
        assert found.scaling == 2.0
    assert result.cut == {}


def test_hetlora_pads_with_zeros_and_weighs_by_norm():
    result = aggregate_adapters(SOURCES, weights=WEIGHTS, method="hetlora")
    for name in ("q", "v"):
        norms = [np.linalg.norm(source.modules[name].product()) for source in SOURCES]
        shares = np.array(WEIGHTS) * norms / np.dot(WEIGHTS, norms)
        a, b = np.zeros((16, 40)), np.zeros((48, 16))
        for share, source in zip(shares, SOURCES, strict=True):
            factors = source.modules[name]
            a[: factors.rank] += share * factors.a
            b[:, : factors.rank] += share * factors.scaling * factors.b
        found = result.adapter.modules[name]
        assert np.allclose(found.a, a, rtol=1e-5, atol=1e-6)
        assert np.allclose(found.b, b, rtol=1e-5, atol=1e-6)


def test_flexlora_cuts_to_the_largest_rank():
    result = aggregate_adapters(SOURCES, weights=WEIGHTS, method="flexlora")
    wanted = aggregate_adapters(SOURCES, weights=WEIGHTS, rank=16)
    assert result.adapter.rank == 16
    assert adapter_digest(result.adapter) == adapter_digest(wanted.adapter)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_every_method_works_on_folders_or_says_why_not(entry):
    if entry.name in OFFLINE_METHODS:
        aggregate_adapters([adapter(1, 4), adapter(2, 4)], method=entry.name)
        return
    with pytest.raises(InputError, match=f"--method: {entry.name} .+; use ledger for folders"):
        check_offline_method(entry.name)


@pytest.mark.parametrize("method", ["fedit", "hetlora"])
def test_means_of_factors_refuse_what_they_have_no_place_for(method):
    with pytest.raises(InputError, match="adapter 2: module v: missing"):
        aggregate_adapters([adapter(1, 4), adapter(2, 4, modules=("q",))], method=method)
    with pytest.raises(InputError, match="--rank: 3 with"):
        aggregate_adapters([adapter(1, 4)], method=method, rank=3)


def test_fedit_refuses_unequal_ranks_and_scalings_by_name():
    with pytest.raises(InputError, match="adapter 2: module q: rank 8, scaling 2"):
        aggregate_adapters([adapter(1, 4), adapter(2, 8)], method="fedit")
    with pytest.raises(InputError, match=r"adapter 2: module q: rank 4, scaling 0\.5"):
        aggregate_adapters([adapter(1, 4), adapter(2, 4, 0.5)], method="fedit")


OPTIONS = [{}, {"rank": 5}, {"method": "hetlora"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_numbers_that_are_not_finite_are_named_by_folder_and_module(
    folders, tmp_path, options, value, side
):
    odd = adapter(2, 16, 0.5)
    getattr(odd.modules["v"], side)[3, 2] = value
    (tmp_path / "out").mkdir()
    for sources in ([SOURCES[0], odd, SOURCES[2]],):
        with pytest.raises(InputError, match=rf"bob: factor {side.upper()} of v: not finite"):
            aggregate_adapters(sources, labels=["ann", "bob", "cem"], **options)
    write_adapter(folders[1].with_name("odd"), odd)
    whole = opened_sum([folders[0], folders[1].with_name("odd")], **options)
    with pytest.raises(InputError, match=rf"odd: .*v\.lora_{side.upper()}\.weight: not finite"):
        write_sum(whole, tmp_path / "out")


@pytest.mark.parametrize("options", OPTIONS)
def test_finite_factors_of_a_product_that_is_not_are_refused(options):
    odd = adapter(2, 4)
    odd.modules["q"].a[:] = 1e25
    odd.modules["q"].b[:] = 1e25
    with pytest.raises(InputError, match=r"bob: product of q: norm .*e\+5\d; .*beyond float32"):
        aggregate_adapters([SOURCES[0], odd], labels=["ann", "bob"], **options)


@pytest.mark.parametrize("rank", [None, 5, 28])
@pytest.mark.parametrize("gauge", [1e-25, 1e12, 1e25])
def test_a_gauge_that_float32_s_squares_cannot_hold_changes_nothing(rank, gauge):
    moved = replace(
        SOURCES[1],
        modules={
            name: replace(f, a=f.a / np.float32(gauge), b=f.b * np.float32(gauge))
            for name, f in SOURCES[1].modules.items()
        },
    )
    found = aggregate_adapters([SOURCES[0], moved, SOURCES[2]], weights=WEIGHTS, rank=rank)
    wanted = aggregate_adapters(SOURCES, weights=WEIGHTS, rank=rank)
    for name in ("q", "v"):
        difference = found.adapter.modules[name].product() - wanted.adapter.modules[name].product()
        assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(dense(name))


def test_a_sum_beyond_float32_is_refused():
    odd = adapter(2, 4, 1e25)
    odd.modules["q"].b[:] *= np.float32(1e14)
    odd.modules["q"].a[:] *= np.float32(1e-4)
    with pytest.raises(InputError, match="sum of q: beyond float32"):
        aggregate_adapters([odd])


def test_a_file_that_changes_on_the_way_ends_in_an_error(folders, tmp_path):
    whole = opened_sum(folders, rank=3)
    write_adapter(tmp_path / "other", SOURCES[0])
    for file in (tmp_path / "other").iterdir():
        file.replace(folders[0] / file.name)
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityError, match="changed while it was read"):
        write_sum(whole, tmp_path / "out")


def test_shapes_are_compared_by_name():
    odd = adapter(2, 4)
    narrow = replace(odd.modules["v"], a=odd.modules["v"].a[:, :9])
    with pytest.raises(InputError, match=r"bob's module v: \(48, 9\); .* ann has \(48, 40\)"):
        aggregate_adapters(
            [adapter(1, 4), replace(odd, modules={**odd.modules, "v": narrow})],
            labels=["ann", "bob"],
        )
    with pytest.raises(InputError, match="ann: has no modules"):
        aggregate_adapters([replace(odd, modules={})], labels=["ann"])


def test_heads_are_averaged_and_must_be_finite():
    head = np.ones((2, 3), np.float32)
    first = replace(adapter(1, 4), dense={"score.weight": head})
    second = replace(adapter(2, 4), dense={"score.weight": 5 * head})
    result = aggregate_adapters([first, second], weights=[1, 3], rank=2)
    assert np.array_equal(result.adapter.dense["score.weight"], 4 * head)
    with pytest.raises(InputError, match="adapter 2's head"):
        aggregate_adapters([first, adapter(2, 4)])
