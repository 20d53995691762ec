from __future__ import annotations

import pytest
import torch
from intarsia_client.errors import InputError
from intarsia_platform.serving.cache import BLOCK, SlotCache

CPU = torch.device("cpu")


def _cache(slots: int = 3, capacity: int = 70) -> SlotCache:
    return SlotCache(layers=2, slots=slots, capacity=capacity)


def _write(cache: SlotCache, new: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [cache.update(new + layer, -new - layer, layer) for layer in range(2)]


def test_capacity_is_whole_blocks_and_slots_go_lowest_first() -> None:
    cache = _cache()
    assert cache.capacity == 2 * BLOCK
    assert [cache.acquire() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="wait"):
        cache.acquire()
    cache.release(2)
    cache.release(0)
    assert (cache.free, cache.acquire(), cache.acquire()) == (2, 0, 2)


def test_a_prompt_in_pieces_is_seen_whole() -> None:
    cache = _cache()
    slot = cache.acquire()
    new = torch.randn(1, 4, 9, 8)
    for begin, end in ((0, 4), (4, 9)):
        step = cache.begin_prompt(slot, end - begin)
        assert (step.start, step.visible) == (begin, end)
        seen = _write(cache, new[:, :, begin:end])
        cache.finish([slot], end - begin)
    assert cache.length(slot) == 9
    for layer, (keys, values) in enumerate(seen):
        assert torch.equal(keys, new + layer)
        assert torch.equal(values, -new - layer)


def test_rows_write_at_their_own_positions_and_others_are_left_alone() -> None:
    cache = _cache()
    for slot, length in enumerate((5, 2, 7)):
        cache.acquire()
        cache.begin_prompt(slot, length)
        _write(cache, torch.full((1, 4, length, 8), float(slot + 1)))
        cache.finish([slot], length)
    before = cache.layers[0].keys.clone()
    cache.begin_tokens([0, 2], first=0, rows=3, visible=BLOCK, device=CPU)
    keys, _ = _write(cache, torch.full((3, 4, 1, 8), 9.0))[0]
    cache.finish([0, 2], 1)
    assert keys.shape == (3, 4, BLOCK, 8)
    before[0, :, 5] = before[2, :, 7] = 9.0
    assert torch.equal(cache.layers[0].keys, before)
    assert [cache.length(slot) for slot in range(3)] == [6, 2, 8]


@pytest.mark.parametrize("finished", [True, False])
def test_a_released_slot_holds_zeros_whatever_was_in_it(finished: bool) -> None:
    cache = _cache()
    slot = cache.acquire()
    cache.begin_prompt(slot, 6)
    with torch.inference_mode():
        _write(cache, torch.full((1, 4, 6, 8), torch.nan))
    if finished:
        cache.finish([slot], 6)
        cache.begin_tokens([slot], first=0, rows=1, visible=BLOCK, device=CPU)
        _write(cache, torch.full((1, 4, 1, 8), torch.inf))
        cache.finish([slot], 1)
    cache.release(slot)
    cache.release(slot)
    assert cache.free == 3
    assert not any(bool(one.any()) for layer in cache.layers for one in (layer.keys, layer.values))


def test_a_row_that_is_too_long_is_refused() -> None:
    cache = _cache(capacity=BLOCK)
    slot = cache.acquire()
    with pytest.raises(InputError, match="at most 64"):
        cache.begin_prompt(slot, BLOCK + 1)
    cache.begin_prompt(slot, BLOCK)
    _write(cache, torch.ones(1, 4, BLOCK, 8))
    cache.finish([slot], BLOCK)
    with pytest.raises(InputError, match="at most 64"):
        cache.begin_tokens([slot], first=0, rows=1, visible=BLOCK, device=CPU)
    assert cache.size == 2 * 2 * 3 * 4 * BLOCK * 8 * 4


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        SlotCache(layers=1, slots=0, capacity=4)
