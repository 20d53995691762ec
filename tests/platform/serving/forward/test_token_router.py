"""Rows whose tokens are divided layer by layer, beside dense decompositions in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_client.errors import InputError
from intarsia_platform.serving.mixture import BASE, Routed, mixture_of
from intarsia_platform.serving.served_base import ServedBase

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])
ROUTERS = pytest.mark.parametrize("routing", ["arrow", "lag"])
LENGTHS = pytest.mark.parametrize("length", [5, 1], ids=["prompt", "token"])
TOKENS = torch.tensor(np.random.default_rng(4).integers(1, 60, (4, 5)))
MOST = 4
"""Of how many adapters Arrow mixes a token."""


@pytest.fixture(scope="module")
def library(benches, make_adapter, make_bench):
    """Six adapters of uneven ranks; the last leaves every third module out."""

    def made(kind):
        base = benches[kind].base
        ranks = [lambda index, seed=seed: 1 + (index + seed) % 4 for seed in range(5)]
        ranks.append(lambda index: 3 * (index % 3 > 0))
        return make_bench(base, [make_adapter(base, rank, seed=n) for n, rank in enumerate(ranks)])

    return {kind: made(kind) for kind in ("llama", "gpt2")}


@torch.no_grad()
def answered(served, mixtures, tokens, *, strict=False):
    with served.using(served.plan(mixtures, strict=strict)) as model:
        return model(input_ids=tokens).logits


def gates(routing, x, products):
    """Each token's gates, shape (tokens, adapters), by the papers' formulas."""
    directions = []
    for product in products:
        _, sigma, v = torch.linalg.svd(product, full_matrices=False)
        directions.append(v[sigma > 1e-6 * sigma[0]])
    scores = torch.stack([(x @ v[0]).abs() for v in directions], dim=1)
    if routing == "lag":
        # Every adapter is among the first twenty.
        longest = torch.stack([(x @ v.T).norm(dim=1) for v in directions], dim=1).argmax(1)
        return torch.nn.functional.one_hot(longest, len(products)).double()
    kept = torch.full_like(scores, -torch.inf)
    best = scores.topk(min(MOST, len(products)), dim=1).indices
    return kept.scatter(1, best, scores.gather(1, best)).softmax(1)


@torch.no_grad()
def expected(bench, indices, routing, tokens):
    """One row through a float64 copy whose modules route densely."""
    model = copy.deepcopy(bench.base.model).double()
    adapters = [bench.adapters[index] for index in indices]
    for name in {name for one in adapters for name in one.modules}:
        having = [one.modules[name] for one in adapters if name in one.modules]
        products = [torch.from_numpy(one.product()).double() for one in having if one.rank]
        if products:
            model.get_submodule(name).register_forward_hook(dense(routing, products))
    return model(input_ids=tokens).logits


def dense(routing, products):
    def hook(_, inputs, output):
        x = inputs[0].flatten(0, -2)
        shares = gates(routing, x, products)
        parts = torch.stack([x @ product.T for product in products], dim=1)
        return output + (shares[..., None] * parts).sum(1).view_as(output)

    return hook


def routed(bench, indices, routing):
    # Weights stand for nothing where a router divides.
    weights = [0.25 + 0.5 * place for place, _ in enumerate(indices)]
    parts = zip((bench.banked[index] for index in indices), weights, strict=True)
    return mixture_of(parts, routing)


@KINDS
@ROUTERS
@LENGTHS
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "packed"])
def test_every_token_gets_what_the_dense_router_gives_it(library, kind, routing, length, strict):
    bench = library[kind]
    tokens = TOKENS[:, :length]
    sets = [(0, 1, 2, 3, 4, 5), (), (2, 5, 1), (3,)]
    mixtures = [routed(bench, one, routing) if one else BASE for one in sets]
    mixtures[3] = mixture_of([(bench.banked[3], 1.0)], routing)
    # The row between is mixed by weight.
    mixtures[1] = mixture_of([(bench.banked[0], 0.5), (bench.banked[4], 0.5)])
    with ServedBase(bench.base) as served:
        found = answered(served, mixtures, tokens, strict=strict)
        by_weight = answered(served, [BASE, mixtures[1], BASE, BASE], tokens, strict=True)
    for row in (0, 2, 3):
        want = expected(bench, sets[row], routing, tokens[[row]])[0]
        torch.testing.assert_close(found[row].double(), want, rtol=0, atol=2e-5)
    torch.testing.assert_close(found[1], by_weight[1], rtol=0, atol=1e-5)


@KINDS
def test_the_routers_and_the_weights_are_three_answers(library, kind):
    bench = library[kind]
    with ServedBase(bench.base) as served:
        found = [
            answered(served, [routed(bench, range(5), one)], TOKENS[:1])
            for one in ("", "arrow", "lag")
        ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[one] - found[other]).abs().max() > 0.01


@KINDS
@ROUTERS
@LENGTHS
def test_batch_mates_and_poison_change_no_bit(library, kind, routing, length):
    bench = library[kind]
    tokens = TOKENS[:, :length]
    wrong = {name: torch.full_like(one, torch.nan) for name, one in bench.banked[3].a.items()}
    poison = replace(bench.banked[3], digest="poison", a=wrong)
    own = routed(bench, (0, 1, 2), routing)
    with ServedBase(bench.base) as served:
        alone = answered(served, [own, BASE, BASE, BASE], tokens, strict=True)
        others = [own, mixture_of([(poison, 1.0)]), routed(bench, (3, 4), routing), BASE]
        together = answered(served, others, tokens, strict=True)
        assert torch.equal(together[0], alone[0])
        assert not together[1].isfinite().any()
        assert together[[0, 2, 3]].isfinite().all()


@KINDS
@ROUTERS
@LENGTHS
def test_a_row_has_the_same_bits_beside_any_number_of_others(library, kind, routing, length):
    bench = library[kind]
    own, other = routed(bench, (0, 1, 2, 3, 4), routing), routed(bench, (1, 2, 4), routing)
    tokens = TOKENS[:, :length][[0, 1, 2, 3, 0, 1, 2, 3]]
    with ServedBase(bench.base) as served:
        alone = answered(served, [own, *[BASE] * 7], tokens, strict=True)[0]
        for count in range(2, 8):
            for mates in (own, other):
                mixtures = [own, *[mates] * (count - 1), *[BASE] * (8 - count)]
                together = answered(served, mixtures, tokens, strict=True)
                assert torch.equal(together[0], alone), count


def test_what_is_kept_of_an_adapter_goes_with_it(library):
    bench = library["llama"]
    with ServedBase(bench.base) as served:
        answered(served, [routed(bench, (0, 1), "lag")], TOKENS[:1], strict=True)
        both = served.copied_bytes
        served.forget(bench.banked[0].digest)
        assert 0 < served.copied_bytes < both
        served.release()
        assert served.copied_bytes == 0


def test_one_adapter_needs_no_router_and_an_unknown_one_is_refused(library):
    bench = library["llama"]
    assert not isinstance(routed(bench, (2,), "arrow"), Routed)
    assert mixture_of([], "arrow") == BASE and not isinstance(mixture_of([], "arrow"), Routed)
    assert routed(bench, (2, 3), "arrow").routing == "arrow"
    assert not isinstance(routed(bench, (2, 3), ""), Routed)
    with pytest.raises(InputError, match="routing: spectral; choose one of arrow, lag"):
        routed(bench, (2, 3), "spectral")
