"""Arrow and LAG against dense decompositions, PEFT, and libraries that hold what is not allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_client.wire import LowRankFactors
from intarsia_continual.layerwise import SpectralRows, arrow_gates, lag_gates, spectral_rows
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.config import ArrowConfig

D_IN, D_OUT = 10, 7


def factors(seed: int, rank: int = 3, scaling: float = 2.0) -> LowRankFactors:
    generator = np.random.default_rng(seed)
    return LowRankFactors(
        a=generator.normal(size=(rank, D_IN)).astype(np.float32),
        b=generator.normal(size=(D_OUT, rank)).astype(np.float32),
        scaling=scaling,
    )


def library(seeds) -> dict[str, SpectralRows]:
    return {f"sha256:{seed:02d}": spectral_rows(factors(seed, 1 + seed % 4)) for seed in seeds}


def hidden_states(seed: int = 0, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (2, 5)), D_IN, generator=generator)


@pytest.mark.parametrize("rank", [1, 2, 3, 7, 12])
def test_the_rows_are_the_products_right_singular_vectors(rank) -> None:
    one = factors(rank, rank)
    _, sigma, v = np.linalg.svd(one.product())
    count = int((sigma > 1e-9 * sigma[0]).sum())
    rows = spectral_rows(one).rows.double().numpy()
    assert rows.shape == (count, D_IN)
    # Up to the sign of each.
    assert np.abs((rows * v[:count]).sum(axis=1)) == pytest.approx(np.ones(count), abs=1e-5)
    assert rows @ rows.T == pytest.approx(np.eye(count), abs=1e-5)
    assert spectral_rows(one).arrow.numpy() == pytest.approx(rows[0])


def test_an_adapter_that_learned_nothing_listens_to_nothing() -> None:
    one = factors(1)
    zero = LowRankFactors(a=one.a, b=np.zeros_like(one.b), scaling=1.0)
    none = LowRankFactors(a=one.a[:0], b=one.b[:, :0], scaling=1.0)
    for nothing in (zero, none):
        rows = spectral_rows(nothing)
        assert rows.rows.shape == (0, D_IN)
        assert not rows.arrow.any()
        held = {"a": rows, "b": spectral_rows(one)}
        gates = lag_gates(hidden_states(), held, ["a", "b"])
        assert (gates.weights[..., 1] == 1).all()


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_arrow_is_the_softmax_of_the_largest_scores(top_k) -> None:
    held = library(range(5))
    x = hidden_states()
    gates = arrow_gates(x, held, held, top_k=top_k, temperature=0.7)
    assert gates.digests == tuple(sorted(held))
    for token, weights in zip(
        x.reshape(-1, D_IN).double().numpy(), gates.weights.reshape(-1, 5).numpy(), strict=True
    ):
        scores = np.array([abs(held[d].arrow.double().numpy() @ token) for d in gates.digests])
        kept = np.argsort(-scores)[:top_k]
        expected = np.zeros(5)
        expected[kept] = np.exp(scores[kept] / 0.7) / np.exp(scores[kept] / 0.7).sum()
        assert weights == pytest.approx(expected, abs=1e-5)


def test_arrow_does_what_pefts_does() -> None:
    ones = {f"task_{n}": factors(n) for n in range(4)}
    # PEFT finds the first direction by fifteen steps of the power method: make it stand out.
    for n, one in enumerate(ones.values()):
        one.b[:, 0] *= 30
        one.a[0] = np.eye(D_IN)[n] + 0.3
    config = ArrowConfig(top_k=2, router_temperature=0.5)
    config.task_adapter_names, config.gks_adapter_names = list(ones), []
    layer = ArrowLoraLinearLayer(D_IN, config)
    sides = []
    for side, shape in (("a", (D_IN, 3)), ("b", (3, D_OUT))):
        linears = torch.nn.ModuleDict({n: torch.nn.Linear(*shape, bias=False) for n in ones})
        for name, one in ones.items():
            linears[name].weight.data = torch.from_numpy(getattr(one, side))
        sides.append(linears)
    layer.build_prototypes(*sides)
    scalings = {name: one.scaling for name, one in ones.items()}
    x = hidden_states()
    expected = layer(x, *sides, torch.nn.Identity(), scalings).detach()
    held = {name: spectral_rows(one) for name, one in ones.items()}
    gates = arrow_gates(x, held, held, top_k=2, temperature=0.5)
    products = [torch.from_numpy(ones[name].product()).float() for name in gates.digests]
    deltas = torch.stack([x @ product.T for product in products], dim=-1)
    found = (deltas * gates.weights[..., None, :]).sum(dim=-1)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("top_k", [1, 2, 5, 20])
def test_lag_takes_the_longest_projection_of_those_that_arrow_lets_through(top_k) -> None:
    held = library(range(6))
    x = hidden_states()
    gates = lag_gates(x, held, held, top_k=top_k)
    assert set(gates.weights.unique().tolist()) == {0.0, 1.0}
    for token, weights in zip(
        x.reshape(-1, D_IN).double().numpy(), gates.weights.reshape(-1, 6), strict=True
    ):
        rows = [held[d].rows.double().numpy() for d in gates.digests]
        passed = np.argsort([-abs(one[0] @ token) for one in rows])[:top_k]
        best = max(passed, key=lambda place: np.linalg.norm(rows[place] @ token))
        assert weights.argmax() == best and weights.sum() == 1


@given(
    seeds=st.sets(st.integers(0, 12), max_size=6),
    more=st.sets(st.integers(0, 12)),
    seed=st.integers(0, 99),
    top_k=st.integers(1, 7),
)
@settings(max_examples=40)
def test_what_is_not_allowed_changes_no_bit(seeds, more, seed, top_k) -> None:
    allowed = library(seeds)
    broken = {"sha256:broken": SpectralRows(rows=torch.full((2, D_IN), torch.nan))}
    everything = {**broken, **library(seeds | more)}
    x = hidden_states(seed)
    for route in (arrow_gates, lag_gates):
        alone = route(x, allowed, set(allowed), top_k=top_k)
        beside = route(x, everything, list(allowed), top_k=top_k)
        assert beside.digests == alone.digests == tuple(sorted(allowed))
        assert torch.equal(beside.weights, alone.weights)
        assert alone.weights.shape == (2, 5, len(allowed))
        if allowed:
            assert torch.allclose(alone.weights.sum(dim=-1), torch.ones(2, 5))
            assert int((alone.weights > 0).sum(dim=-1).max()) <= top_k


def test_nothing_but_the_allowed_is_looked_at(guarded) -> None:
    allowed = {"sha256:01", "sha256:02", "sha256:09"}
    held = guarded(library(range(6)), allowed)
    for route in (arrow_gates, lag_gates):
        assert route(hidden_states(), held, allowed).digests == ("sha256:01", "sha256:02")


def test_of_equals_the_smaller_digest_is_taken() -> None:
    same = spectral_rows(factors(1))
    held = {"c": same, "a": same, "b": same}
    x = hidden_states()
    assert (lag_gates(x, held, held).weights[..., 0] == 1).all()
    assert (arrow_gates(x, held, held, top_k=1).weights[..., 0] == 1).all()
    assert (arrow_gates(x, held, held, top_k=2).weights[..., :2] == 0.5).all()


def test_a_token_that_is_not_a_number_spoils_itself_alone() -> None:
    held = library(range(4))
    x = hidden_states()
    clean = arrow_gates(x, held, held).weights
    x[0, 1] = torch.nan
    spoilt = arrow_gates(x, held, held).weights
    assert spoilt[0, 1].isnan().all()
    spoilt[0, 1] = clean[0, 1]
    assert torch.equal(spoilt, clean)


def test_half_precision_states_are_scored_in_float32() -> None:
    held = library(range(4))
    x = hidden_states().bfloat16()
    assert torch.equal(
        arrow_gates(x, held, held).weights, arrow_gates(x.float(), held, held).weights
    )


def test_settings_out_of_range_are_refused() -> None:
    held = library(range(2))
    for route in (arrow_gates, lag_gates):
        with pytest.raises(InputError, match="top_k: 0; give at least 1"):
            route(hidden_states(), held, held, top_k=0)
    for temperature in (0.0, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            arrow_gates(hidden_states(), held, held, temperature=temperature)
