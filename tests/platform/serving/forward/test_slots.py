from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.slot_kernel import SlotKernel
from intarsia_platform.serving.slots import GroupSlots, ranks_in, wanted_of

GROUP = ("one", "two", "three")
D_IN = 11
RANKS = [(2, 2, 2), (2, 2, 2), (2, 2, 2), (5, 5, 5), (1, 0, 3), (0, 4, 0), (3, 1, 2), (0, 0, 0)]


def adapters_with(widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, ranks in enumerate(RANKS):
        present = [(name, r, w) for name, r, w in zip(GROUP, ranks, widths, strict=True) if r]
        made.append(
            BankedAdapter(
                digest=f"adapter {index}",
                ranks={name: rank for name, rank, _ in present},
                a={n: torch.randn(r, D_IN, generator=generator) for n, r, _ in present},
                b={n: torch.randn(r, w, generator=generator).T for n, r, w in present},
            )
        )
    return made


def kernel_of(slots, mixtures, widths, shared_rank=48, *, together=False):
    wanted = wanted_of(ranks_in(GROUP, mixtures), mixtures, shared_rank=shared_rank)
    return SlotKernel(slots, wanted, len(mixtures), widths, {}, together=together)


def run(kernel, rows, widths, x, bases):
    outputs = [base.clone() for base in bases]
    for position, output in enumerate(outputs):
        kernel.add(position, x, output)
    return outputs


def expected(mixtures, x, bases):
    outputs = [base.double().clone() for base in bases]
    for row, mixture in enumerate(mixtures):
        for adapter, weight in mixture:
            for name, output in zip(GROUP, outputs, strict=True):
                if name in adapter.a:
                    product = adapter.b[name].double() @ adapter.a[name].double()
                    output[row, 0] += weight * (product @ x[row, 0].double())
    return outputs


mixture = st.dictionaries(
    st.integers(0, len(RANKS) - 1), st.sampled_from([1.0, 0.5, -0.25]), max_size=3
)
batches = st.lists(st.lists(mixture, min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.mark.parametrize("widths", [(7, 7, 7), (9, 4, 4)], ids=["alike", "grouped-queries"])
@settings(max_examples=25)
@given(batches=batches, seed=st.integers(0, 100), shared_rank=st.sampled_from([6, 15, 64]))
def test_whatever_was_in_the_slots_before(widths, batches, seed, shared_rank):
    adapters = adapters_with(widths)
    generator = torch.Generator().manual_seed(seed)
    slots = GroupSlots(GROUP)
    kept = []
    for chosen in batches:
        mixtures = [tuple((adapters[i], w) for i, w in sorted(one.items())) for one in chosen]
        if not any(map(any, ranks_in(GROUP, mixtures))):
            continue
        x = torch.randn(len(mixtures), 1, D_IN, generator=generator)
        bases = [torch.randn(len(mixtures), 1, width, generator=generator) for width in widths]
        kept.append((kernel_of(slots, mixtures, widths, shared_rank), mixtures, x, bases))
        for kernel, rows, inputs, before in (kept[-1], kept[0]):
            found = run(kernel, len(rows), widths, inputs, before)
            for one, other in zip(found, expected(rows, inputs, before), strict=True):
                torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5)
            # As in an empty house: nothing depends on what was there before, to the bit.
            fresh = run(
                kernel_of(GroupSlots(GROUP), rows, widths), len(rows), widths, inputs, before
            )
            assert all(torch.equal(a, b) for a, b in zip(found, fresh, strict=True))
            # Together only the last bits differ.
            joint = kernel_of(slots, rows, widths, shared_rank, together=True)
            for one, other in zip(
                found, run(joint, len(rows), widths, inputs, before), strict=True
            ):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_row_that_changes_costs_its_own_copy_only(monkeypatch):
    adapters = adapters_with((7, 7, 7))
    slots = GroupSlots(GROUP)
    written = []
    monkeypatch.setattr(
        "intarsia_platform.serving.slots.Bucket._write",
        lambda _, slot, adapter: written.append(adapter.digest),
    )
    rows = [((adapters[0], 1.0),), ((adapters[1], 1.0),), ((adapters[3], 1.0),)]
    for batch in (rows, rows[::-1], [((adapters[2], 1.0),), *rows[1:]], rows[1:]):
        slots.arrange(object(), wanted_of(ranks_in(GROUP, batch), batch))
    assert written == ["adapter 0", "adapter 1", "adapter 3", "adapter 2"]


def test_slots_hold_what_the_last_batch_needs():
    adapters = adapters_with((7, 7, 7))
    slots = GroupSlots(GROUP)

    def size(*batch):
        mixtures = [((adapters[index], 1.0),) for index in batch]
        slots.arrange(object(), wanted_of(ranks_in(GROUP, mixtures), mixtures))
        return slots.size

    small = size(0)
    assert size(0, 0) == 2 * small
    assert size(3) == small * 5 // 2
    assert size(0, 3) == small + small * 5 // 2
    # One copy for many rows, once it is worth a call.
    assert size(*[3] * 4) == 4 * small * 5 // 2
    assert size(*[3] * 5) == small * 5 // 2
    assert size(0, 3) == small + small * 5 // 2
    slots.forget("adapter 3")
    assert slots.size == small
    slots.clear()
    assert slots.size == 0


def test_copying_that_fails_halfway_is_not_taken_for_done(monkeypatch):
    adapters = adapters_with((7, 7, 7))
    slots = GroupSlots(GROUP)
    x, bases = torch.ones(2, 1, D_IN), [torch.zeros(2, 1, 7) for _ in GROUP]
    first = [((adapters[0], 1.0),), ((adapters[1], 1.0),)]
    second = [((adapters[2], 1.0),), ((adapters[1], 1.0),)]
    run(kernel_of(slots, first, (7, 7, 7)), 2, (7, 7, 7), x, bases)
    from intarsia_platform.serving.slots import Bucket

    write = Bucket._write

    def write_and_fail(self, slot, adapter):
        write(self, slot, adapter)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Bucket, "_write", write_and_fail)
        run(kernel_of(slots, second, (7, 7, 7)), 2, (7, 7, 7), x, bases)
    for rows in (first, second):
        found = run(kernel_of(slots, rows, (7, 7, 7)), 2, (7, 7, 7), x, bases)
        for one, other in zip(found, expected(rows, x, bases), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5)
