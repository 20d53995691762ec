"""Modules side by side: in order, each thread with its memory, the first error out."""

from __future__ import annotations

import threading

import pytest
import torch
from intarsia_aggregators.sources import Workspace
from intarsia_aggregators.workers import side_by_side

NAMES = [f"module {number}" for number in range(30)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_no_memory_is_shared(workers):
    seen: dict[int, set[int]] = {}
    both = threading.Barrier(2, timeout=30)

    def work(name: str, workspace: Workspace) -> str:
        seen.setdefault(threading.get_ident(), set()).add(id(workspace))
        if workers == 2:
            both.wait()
        return name.upper()

    found = list(side_by_side(work, NAMES, workers))
    assert found == [(name, name.upper()) for name in NAMES]
    assert all(len(held) == 1 for held in seen.values())
    assert len({one for held in seen.values() for one in held}) == len(seen) <= workers
    assert (threading.get_ident() in seen) == (workers == 1)


def test_the_first_error_comes_out_and_the_threads_end():
    def work(name: str, workspace: Workspace) -> str:
        if name == NAMES[7]:
            raise ValueError(name)
        return name

    before = threading.active_count(), torch.get_num_threads()
    found = []
    with pytest.raises(ValueError, match="module 7"):
        for name, _ in side_by_side(work, NAMES, 3):
            found.append(name)
    assert found == NAMES[:7]
    assert (threading.active_count(), torch.get_num_threads()) == before


def test_arithmetic_inside_takes_one_thread_and_outside_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inside = {
            threads for _, threads in side_by_side(lambda *_: torch.get_num_threads(), NAMES, 2)
        }
        assert inside == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_workspace_is_used_again():
    workspace = Workspace()
    first = workspace.take("a", 4, 5)
    assert first.shape == (4, 5) and first.dtype == torch.float32
    assert workspace.take("a", 2, 3).data_ptr() == first.data_ptr()
    assert workspace.take("b", 4, 5).data_ptr() != first.data_ptr()
    assert workspace.take("a", 100, 3).shape == (100, 3)
    assert workspace.take("a", 0, 3).shape == (0, 3)
