from __future__ import annotations

import copy
import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.attachment import attached
from intarsia_client.errors import InputError
from intarsia_platform.serving.mixture import mixture_of
from intarsia_platform.serving.served_base import ServedBase

KINDS = ("llama", "gpt2", "bert", "scorer")
TOKENS = torch.tensor(np.random.default_rng(0).integers(1, 60, (6, 5)))
SINGLE = ((0, 1.0),), ((1, 1.0),), (), ((2, 1.0),), ((3, 1.0),), ((1, 1.0),)
MIXED = (
    ((0, 0.5), (1, 0.3125), (2, 0.1875)),
    (),
    ((3, 0.75), (1, 0.25)),
    ((2, 1.0),),
    ((0, 0.25),),
    ((1, -0.5), (0, 1.0)),
)
kinds = pytest.mark.parametrize("kind", KINDS)
stricts = pytest.mark.parametrize("strict", [True, False], ids=["strict", "packed"])
lengths = pytest.mark.parametrize("length", [5, 1], ids=["prompt", "token"])


@torch.no_grad()
def answered(served, mixtures, tokens, *, strict=True):
    with served.using(served.plan(mixtures, strict=strict)) as model:
        return model(input_ids=tokens).logits


@kinds
@stricts
@lengths
@pytest.mark.parametrize("rows", [SINGLE, MIXED], ids=["single", "mixed"])
def test_every_row_is_answered_as_in_float64(benches, kind, strict, length, rows):
    bench = benches[kind]
    tokens = TOKENS[:, :length]
    with ServedBase(bench.base) as served:
        plan = served.plan(bench.mixtures(rows), strict=strict)
        assert plan.packed != strict
        found = answered(served, bench.mixtures(rows), tokens, strict=strict)
    expected = bench.expected(rows, tokens)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        bare = bench.base.model(input_ids=tokens).logits
    changed = (found - bare).abs().flatten(1).max(1).values
    assert [bool(row) for row in rows] == (changed > 0.01).tolist()


@kinds
@stricts
@lengths
def test_answers_are_pefts_mixed_batch(benches, make_peft, tmp_path, kind, strict, length):
    bench = benches[kind]
    tokens = TOKENS[:, :length]
    model = make_peft(bench.base, bench.adapters, tmp_path)
    names = [f"a{row[0][0]}" if row else "__base__" for row in SINGLE]
    with torch.no_grad():
        expected = model(input_ids=tokens, adapter_names=names).logits
    with ServedBase(bench.base) as served:
        found = answered(served, bench.mixtures(SINGLE), tokens, strict=strict)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@stricts
@lengths
def test_mixtures_are_pefts_cat(
    benches, make_adapter, make_bench, make_peft, tmp_path, kind, strict, length
):
    base = benches[kind].base
    # PEFT's cat wants the same modules in each, and no rank pattern.
    bench = make_bench(base, [make_adapter(base, rank, seed=rank) for rank in (2, 4, 7)])
    rows = [((0, 0.5), (1, 0.3125), (2, 0.1875)), ((2, 0.75), (0, 0.25)), ((1, 0.5),)]
    model = make_peft(base, bench.adapters, tmp_path)
    tokens = TOKENS[:3, :length]
    expected = []
    for index, row in enumerate(rows):
        names, weights = [f"a{one}" for one, _ in row], [weight for _, weight in row]
        name = f"mixture{index}"
        model.add_weighted_adapter(names, weights, name, combination_type="cat")
        model.set_adapter(name)
        with torch.no_grad():
            expected.append(model(input_ids=tokens[[index]]).logits)
    with ServedBase(base) as served:
        found = answered(served, bench.mixtures(rows), tokens, strict=strict)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


@stricts
@lengths
def test_a_trained_model_answers_as_peft(
    stories, make_adapter, make_bench, make_peft, tmp_path, strict, length
):
    # Of a trained adapter's size, so that rounding is not blown up layer by layer.
    adapters = [make_adapter(stories, 3 + seed, seed=seed, scaling=0.2) for seed in range(4)]
    bench = make_bench(stories, adapters)
    model = make_peft(stories, bench.adapters, tmp_path)
    tokens = torch.tensor(np.random.default_rng(1).integers(3, 500, (5, 9)))[:, :length]
    with torch.no_grad():
        expected = model(input_ids=tokens, adapter_names=["a0", "a3", "a1", "a1", "a2"]).logits
    rows = [[(index, 1.0)] for index in (0, 3, 1, 1, 2)]
    with ServedBase(stories) as served:
        found = answered(served, bench.mixtures(rows), tokens, strict=strict)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@kinds
@lengths
def test_a_poisoned_row_leaves_the_others_to_the_bit(benches, kind, length):
    bench = benches[kind]
    tokens = TOKENS[:, :length]
    poison = poisoned(bench.banked[1])
    clean = bench.mixtures(MIXED)
    rows = [*clean[:4], mixture_of([(poison, 1.0)]), clean[5]]
    others = [row for row in range(6) if row != 4]
    with ServedBase(bench.base) as served:
        expected = answered(served, clean, tokens)
        found = answered(served, rows, tokens)
        assert torch.equal(found[others], expected[others])
        assert not found[4].isfinite().any()
        if length == 1 and kind in ("llama", "gpt2"):
            # Which the packed kernel could not promise, so this test is able to fail.
            assert not answered(served, rows, tokens, strict=False)[others].isfinite().all()


def poisoned(adapter):
    """An adapter that the bank would refuse."""
    wrong = {name: torch.full_like(side, torch.nan) for name, side in adapter.b.items()}
    return replace(adapter, digest="poison", b={name: side.T.contiguous().T for name, side in
                                               wrong.items()})  # fmt: skip


@kinds
@lengths
@settings(max_examples=10)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_mates_to_the_bit(benches, kind, length, data):
    bench = benches[kind]
    own = bench.mixtures([data.draw(st.sampled_from(MIXED))])[0]
    place = data.draw(st.integers(0, 5))
    tokens = TOKENS[:, :length].clone()
    alone = [()] * 6
    mates = bench.mixtures(data.draw(st.lists(st.sampled_from(MIXED + SINGLE), min_size=6)))[:6]
    with ServedBase(bench.base) as served:
        found = []
        for batch in (alone, mates):
            rows = list(batch)
            rows[place] = own
            found.append(answered(served, rows, tokens)[place])
            tokens[[row for row in range(6) if row != place]] = 7
        assert torch.equal(*found)


@kinds
def test_rows_without_adapters_are_the_bare_base_to_the_bit(benches, kind):
    bench = benches[kind]
    with torch.no_grad():
        bare = bench.base.model(input_ids=TOKENS).logits
    with ServedBase(bench.base) as served:
        assert torch.equal(answered(served, [()] * 6, TOKENS), bare)
        rows = bench.mixtures(SINGLE)
        assert torch.equal(answered(served, rows, TOKENS)[2], bare[2])


@kinds
def test_the_base_is_as_before(benches, kind):
    base = benches[kind].base

    def state():
        modules = [(name, id(one), type(one), dict(one._forward_hooks), "forward" in one.__dict__)
                   for name, one in base.model.named_modules()]  # fmt: skip
        tensors = {name: one.clone() for name, one in base.model.state_dict().items()}
        return modules, sorted(base.model.__dict__), tensors

    before = state()
    with ServedBase(base) as served:
        answered(served, benches[kind].mixtures(MIXED), TOKENS)
        with torch.no_grad():
            outside = base.model(input_ids=TOKENS).logits
    after = state()
    assert before[:2] == after[:2]
    assert all(torch.equal(one, after[2][name]) for name, one in before[2].items())
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=TOKENS).logits, outside)


def test_plans_can_be_used_in_turns(benches):
    bench = benches["llama"]
    with ServedBase(bench.base) as served:
        rows = [bench.mixtures(MIXED), bench.mixtures(SINGLE), bench.mixtures(MIXED[::-1])]
        tokens = TOKENS[:, :1]
        expected = [answered(served, one, tokens) for one in rows]
        plans = [served.plan(one, strict=strict) for one in rows for strict in (True, False)]
        for _, (index, plan) in itertools.product(range(3), enumerate(plans)):
            with torch.inference_mode(), served.using(plan) as model:
                found = model(input_ids=tokens).logits
            torch.testing.assert_close(found, expected[index // 2], rtol=0, atol=1e-5)
            if plan.strict:
                assert torch.equal(found, expected[index // 2])


def test_inference_mode_and_gradients_mix(benches):
    bench = benches["llama"]
    with ServedBase(bench.base) as served:
        for length in (5, 1):
            plan = served.plan(bench.mixtures(MIXED), strict=True)
            found = []
            for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
                with mode(), served.using(plan) as model:
                    found.append(model(input_ids=TOKENS[:, :length]).logits)
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_other_threads_see_the_bare_base(benches):
    bench = benches["llama"]
    with torch.no_grad():
        bare = bench.base.model(input_ids=TOKENS).logits
    with ServedBase(bench.base) as served, served.using(served.plan(bench.mixtures(MIXED))):
        seen = []

        def look():
            with torch.no_grad():
                seen.append(bench.base.model(input_ids=TOKENS).logits)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert torch.equal(seen[0], bare)


def test_threads_take_turns(benches):
    bench = benches["llama"]
    batches = [bench.mixtures(MIXED[shift:] + MIXED[:shift]) for shift in range(6)]
    wrong = []
    with ServedBase(bench.base) as served:
        expected = [answered(served, rows, TOKENS[:, :1]) for rows in batches]

        def work(index):
            for turn in range(5):
                which = (index + turn) % 6
                found = answered(served, batches[which], TOKENS[:, :1])
                if not torch.equal(found, expected[which]):
                    wrong.append((index, turn))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_misuse_is_an_error(benches):
    bench = benches["llama"]
    served = ServedBase(bench.base)
    plan = served.plan(bench.mixtures(MIXED))
    with pytest.raises(RuntimeError, match="served already"):
        ServedBase(bench.base)
    with served.using(plan), pytest.raises(RuntimeError, match="uses a plan"), served.using(plan):
        pass
    with pytest.raises(InputError, match="3 rows, planned 6"), served.using(plan) as model:
        model(input_ids=TOKENS[:3])
    # Neither error left anything behind.
    assert answered(served, bench.mixtures(MIXED), TOKENS).isfinite().all()
    served.close()
    served.close()
    with pytest.raises(RuntimeError, match="closed"), served.using(plan):
        pass
    ServedBase(bench.base).close()


def test_an_adapter_attached_for_training_is_not_in_the_way(benches):
    bench = benches["llama"]
    with ServedBase(bench.base) as served:
        expected = answered(served, bench.mixtures(SINGLE), TOKENS)
        with (
            attached(bench.base, trainable=bench.adapters[0], underneath=None) as model,
            torch.no_grad(),
        ):
            trained = model(input_ids=TOKENS[:1]).logits
        torch.testing.assert_close(trained, expected[:1], rtol=0, atol=1e-5)
        assert torch.equal(answered(served, bench.mixtures(SINGLE), TOKENS), expected)


@stricts
@lengths
def test_half_precision(benches, make_base, make_bench, strict, length):
    bench = benches["llama"]
    base = make_base(copy.deepcopy(bench.base.model).bfloat16(), "causal-lm")
    half = make_bench(base, bench.adapters)
    assert {side.dtype for side in half.banked[0].a.values()} == {torch.bfloat16}
    tokens = TOKENS[:, :length]
    with ServedBase(base) as served:
        found = answered(served, half.mixtures(MIXED), tokens, strict=strict)
    expected = bench.expected(MIXED, tokens)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() < 0.03 * expected.norm()


@stricts
@lengths
def test_autocast(benches, strict, length):
    bench = benches["llama"]
    tokens = TOKENS[:, :length]
    with ServedBase(bench.base) as served, torch.autocast("cpu", dtype=torch.bfloat16):
        found = answered(served, bench.mixtures(MIXED), tokens, strict=strict)
    expected = bench.expected(MIXED, tokens)
    assert (found.double() - expected).norm() < 0.03 * expected.norm()


@stricts
def test_a_forgotten_adapter_leaves_no_copy(benches, strict):
    bench = benches["llama"]
    with ServedBase(bench.base) as served:
        answered(served, bench.mixtures(MIXED), TOKENS[:, :1], strict=strict)
        held = served.copied_bytes
        assert held > 0
        served.forget(bench.digests[0])
        assert served.copied_bytes < held
        for digest in bench.digests:
            served.forget(digest)
        assert served.copied_bytes == 0
        answered(served, bench.mixtures(MIXED), TOKENS[:, :1], strict=strict)
        assert served.copied_bytes == held
        served.release()
        assert served.copied_bytes == 0


def test_a_head_is_mixed_as_its_weights_say(benches):
    bench = benches["bert"]
    headless = replace(bench.banked[0], digest="headless", head={})
    rows = [mixture_of([(headless, 1.0)]), mixture_of([(bench.banked[0], 1.0)])]
    with ServedBase(bench.base) as served:
        found = answered(served, rows, TOKENS[:2])
    adapters = [replace(bench.adapters[0], dense={}), bench.adapters[0]]
    for index, adapter in enumerate(adapters):
        with attached(bench.base, trainable=None, underneath=adapter) as model, torch.no_grad():
            expected = model(input_ids=TOKENS[[index]]).logits
        torch.testing.assert_close(found[[index]], expected, rtol=0, atol=1e-5)
