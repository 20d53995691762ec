"""Sums whose stack is not held: the same approximation, in passes over parts of the sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from intarsia_aggregators import merging, streamed
from intarsia_aggregators.merging import approximated
from intarsia_aggregators.sources import ModuleTerms, Source, Workspace
from intarsia_aggregators.streamed import (
    AccumulatedOperator,
    StreamedOperator,
    is_accumulated,
    recompress_streamed,
)
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, LowRankFactors

D_OUT, D_IN = 60, 72
RANKS = (5, 1, 0, 9, 3, 20, 2, 7, 4)


def terms(*, shared: bool = False, scale: float = 1.0) -> ModuleTerms:
    generator = np.random.default_rng(5)
    common = generator.standard_normal((4, D_IN))
    sources, layouts = [], []
    for index, rank in enumerate(RANKS):
        a = generator.standard_normal((rank, D_IN))
        if shared:
            a = generator.standard_normal((rank, 4)) @ common
        b = scale * generator.standard_normal((D_OUT, rank))
        factors = LowRankFactors(
            a=a.astype(np.float32), b=b.astype(np.float32), scaling=0.5 + index
        )
        adapter = Adapter(base="base", task="causal-lm", modules={"m": factors})
        source = Source(label=f"folder {index}", share=(index + 1) / 45, adapter=adapter)
        sources.append(source)
        layouts.append(source.layout("m"))
    return ModuleTerms("m", sources, layouts)


def dense(module: ModuleTerms) -> np.ndarray:
    return sum(one.share * one.adapter.modules["m"].product() for one in module.sources)


@pytest.fixture(params=[1, 8, 1000])
def _parts(request, monkeypatch):
    """One source a part, a few, or all of them in one."""
    monkeypatch.setattr(streamed, "_TERMS", request.param)


@pytest.fixture(params=["accumulated", "streamed"])
def _way(request, monkeypatch):
    if request.param == "streamed":
        monkeypatch.setattr(streamed, "_MATRIX", 0)
    assert is_accumulated(terms()) == (request.param == "accumulated")


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("make", [AccumulatedOperator, StreamedOperator])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_operator_is_the_dense_product(make, kind):
    module = terms()
    operator = make(module, Workspace(), kind)
    matrix = torch.from_numpy(dense(module))
    block = torch.randn((D_IN, 6), generator=torch.Generator().manual_seed(0)).to(kind)
    close = {"rtol": 1e-4, "atol": 1e-2} if kind == torch.float32 else {}
    assert operator.metric(block) is block
    assert torch.allclose(operator.forward(block).double(), matrix @ block.double(), **close)
    wanted = matrix.T @ (matrix @ block.double())
    found = operator.apply(block, block).double()
    assert (found - wanted).norm() <= (1e-5 if kind == torch.float32 else 1e-12) * wanted.norm()
    assert operator.energy() == pytest.approx(float(matrix.square().sum()), rel=1e-5)
    assert operator.begin(3).shape == (D_IN, 3)


@pytest.mark.usefixtures("_parts", "_way")
@pytest.mark.parametrize(("shared", "rank"), [(False, 3), (False, 20), (False, 60), (True, 3)])
def test_it_is_the_best_approximation(shared, rank):
    module = terms(shared=shared)
    matrix = dense(module)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    total, best = (sigma**2).sum(), (sigma[rank:] ** 2).sum()
    found = recompress_streamed(module, rank, Workspace())
    product = found.b.double().numpy() @ found.a.double().numpy()
    error = np.linalg.norm(product - matrix)
    assert error <= 1.001 * np.sqrt(best) + 1e-6 * np.sqrt(total)
    assert found.energy == pytest.approx(total, rel=1e-5)
    assert found.cut == pytest.approx(best / total, rel=3e-3, abs=1e-9)
    assert found.a.dtype == found.b.dtype == torch.float32
    norms_b, norms_a = found.b.norm(dim=0), found.a.norm(dim=1)
    assert torch.allclose(norms_b, norms_a, rtol=1e-2)


@pytest.mark.usefixtures("_way")
def test_more_rank_than_there_is_leaves_what_there_is():
    found = recompress_streamed(terms(shared=True), 12, Workspace())
    assert found.b.shape == (D_OUT, 4) and found.cut < 1e-12


@pytest.mark.usefixtures("_way")
def test_a_sum_of_nothing_is_nothing():
    found = recompress_streamed(terms(scale=0.0), 3, Workspace())
    assert found.b.shape == (D_OUT, 0) and (found.energy, found.cut) == (0.0, 0.0)


@pytest.mark.usefixtures("_way")
def test_a_gauge_beyond_float32_s_squares_changes_nothing():
    module = terms()
    wanted = recompress_streamed(module, 20, Workspace())
    factors = module.sources[5].adapter.modules["m"]
    factors.a[:] *= np.float32(1e-25)
    factors.b[:] *= np.float32(1e25)
    found = recompress_streamed(module, 20, Workspace())
    difference = found.b.double() @ found.a.double() - wanted.b.double() @ wanted.a.double()
    assert difference.norm() < 0.05 * (wanted.b.double() @ wanted.a.double()).norm()
    assert found.cut == pytest.approx(wanted.cut, rel=3e-3)


def test_memory_decides_between_holding_and_streaming(monkeypatch):
    module = terms()
    held = approximated(module, 8, Workspace())
    monkeypatch.setattr(merging, "MEMORY", merging.resident_bytes(module) - 1)
    calls = []
    monkeypatch.setattr(
        merging,
        "recompress_streamed",
        lambda *words: calls.append(1) or recompress_streamed(*words),
    )
    passed = approximated(module, 8, Workspace())
    assert calls == [1]
    difference = np.linalg.norm(held.factors.product() - passed.factors.product())
    assert difference < 0.05 * np.linalg.norm(held.factors.product())
    assert passed.cut == pytest.approx(held.cut, rel=2e-3)


@pytest.mark.usefixtures("_way")
def test_what_is_not_finite_is_named_by_its_folder():
    module = terms()
    module.sources[3].adapter.modules["m"].b[7, 2] = np.nan
    with pytest.raises(InputError, match="folder 3: factor B of m: not finite"):
        recompress_streamed(module, 3, Workspace())


def test_many_terms_of_a_small_layer_are_added_up(monkeypatch):
    monkeypatch.setattr(merging, "_MANY", 0)
    module = terms()
    monkeypatch.setattr(merging, "MEMORY", 1)
    assert merging.working_bytes(module, 8) == streamed.streamed_bytes(module, 8)
    monkeypatch.undo()
    assert merging.working_bytes(module, 8) == merging.resident_bytes(module)
    assert merging.working_bytes(module, None) < 1 << 25


def test_tiles_keep_sources_whole_and_in_order():
    module = terms()
    for largest in (1, 8, 30, 1000):
        tiles = module.tiles(largest)
        assert [rank for tile in tiles for rank in tile.ranks] == list(RANKS)
        assert all(tile.rank <= largest or len(tile.ranks) == 1 for tile in tiles)
        assert torch.equal(torch.cat([tile.coefficients for tile in tiles]), module.coefficients)


@pytest.mark.parametrize("believed", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_one_factor_held_at_a_time_gives_the_bytes_of_both(shared, believed, monkeypatch):
    if not believed:
        monkeypatch.setattr(merging, "outcome", lambda b, a, spectrum: None)
    module = terms(shared=shared)
    one, both = Workspace(), Workspace(room=1 << 20)
    found = [approximated(module, 4, workspace).factors for workspace in (one, both, both)]
    for other in found[1:]:
        assert found[0].a.tobytes() == other.a.tobytes()
        assert found[0].b.tobytes() == other.b.tobytes()
    best = np.linalg.svd(dense(module), compute_uv=False)[4:]
    error = np.linalg.norm(dense(module) - found[0].product())
    assert error <= 1.001 * np.linalg.norm(best) + 1e-6 * np.linalg.norm(dense(module))
