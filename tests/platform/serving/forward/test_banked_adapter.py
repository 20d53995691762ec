from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.peft_files import EncodedAdapter, encode_adapter
from intarsia_client.wire import LowRankFactors
from intarsia_platform.serving.banked_adapter import decode_for
from intarsia_platform.serving.linear_sites import base_shapes, input_groups


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_factors_are_the_files_with_the_scaling_in_b(benches, kind):
    bench = benches[kind]
    for adapter, banked in zip(bench.adapters, bench.banked, strict=True):
        assert set(banked.a) == set(banked.b) == set(banked.ranks) == set(adapter.modules)
        for name, factors in adapter.modules.items():
            np.testing.assert_array_equal(banked.a[name].numpy(), factors.a)
            np.testing.assert_allclose(banked.b[name].numpy(), factors.b * 1.5, rtol=1e-6)
            assert banked.ranks[name] == factors.rank
        assert set(banked.head) == set(adapter.dense)
        for name, values in adapter.dense.items():
            np.testing.assert_array_equal(banked.head[name].numpy(), values)
        tensors = [*banked.a.values(), *banked.b.values(), *banked.head.values()]
        assert banked.size == 4 * sum(one.numel() for one in tensors)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_groups_factors_lie_together(benches, kind):
    bench = benches[kind]
    for banked, group in itertools.product(bench.banked, input_groups(bench.base)):
        parts = [banked.a[name] for name in group if name in banked.a]
        if parts:
            stacked = banked.stacked_a(group)
            assert torch.equal(stacked, torch.cat(parts))
            assert stacked.data_ptr() == parts[0].data_ptr()
            for name in group:
                assert name not in banked.b or banked.b[name].T.is_contiguous()


def test_factors_that_lie_apart_are_joined_all_the_same(benches):
    banked = benches["llama"].banked[0]
    apart = replace(banked, a={name: side.clone() for name, side in banked.a.items()})
    group = list(banked.a)[:3]
    assert torch.equal(apart.stacked_a(group), banked.stacked_a(group))
    assert torch.equal(banked.stacked_a(group[::-1]), torch.cat([banked.a[n] for n in group[::-1]]))


def refused(bench, adapter, **limits):
    encoded = encode_adapter(adapter)
    with pytest.raises(InputError) as caught:
        decode_for(base_shapes(bench.base, **limits), "sha256:it", encoded)
    assert str(caught.value).startswith("sha256:it: ")
    return str(caught.value)


def changed(adapter, **changes):
    name = next(iter(adapter.modules))
    factors = replace(adapter.modules[name], **changes)
    return replace(adapter, modules={**adapter.modules, name: factors})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_what_is_not_finite_is_refused(benches, wrong, side):
    bench = benches["llama"]
    adapter = bench.adapters[0]
    values = getattr(next(iter(adapter.modules.values())), side).copy()
    values[-1, -1] = wrong
    assert "not finite" in refused(bench, changed(adapter, **{side: values}))


def test_what_scaling_makes_infinite_is_refused(benches):
    bench = benches["llama"]
    b = next(iter(bench.adapters[0].modules.values())).b
    adapter = changed(bench.adapters[0], b=np.full_like(b, 3e38))
    assert "not finite" in refused(bench, adapter)


def test_a_head_that_is_not_finite_is_refused(benches):
    bench = benches["bert"]
    dense = {name: values * np.float32(np.nan) for name, values in bench.adapters[0].dense.items()}
    assert "not finite" in refused(bench, replace(bench.adapters[0], dense=dense))


def test_an_adapter_of_another_base_is_refused(benches):
    llama, gpt2 = benches["llama"], benches["gpt2"]
    assert "use an adapter of this base" in refused(gpt2, llama.adapters[0])
    factors = LowRankFactors(
        a=np.ones((2, 31), np.float32), b=np.ones((32, 2), np.float32), scaling=1.0
    )
    name = next(iter(llama.adapters[0].modules))
    adapter = replace(llama.adapters[0], modules={name: factors})
    assert "(32, 31), not (32, 32)" in refused(llama, adapter)


def test_a_head_of_other_labels_is_refused(benches):
    bench = benches["bert"]
    dense = {name: values[:2] for name, values in bench.adapters[0].dense.items()}
    assert "these labels" in refused(bench, replace(bench.adapters[0], dense=dense))


def test_too_large_a_rank_is_refused(benches):
    assert "use rank 1 to 2" in refused(benches["llama"], benches["llama"].adapters[0], max_rank=2)


def test_damaged_files_are_refused(benches):
    bench = benches["llama"]
    encoded = bench.encoded[bench.digests[0]]
    broken = EncodedAdapter(configuration=encoded.configuration, tensors=encoded.tensors[:-5])
    with pytest.raises(IntegrityError):
        decode_for(base_shapes(bench.base), "sha256:it", broken)
