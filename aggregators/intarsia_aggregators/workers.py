"""Modules worked on side by side, one a thread, each thread with memory of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from intarsia_aggregators.sources import Workspace

_Result = TypeVar("_Result")


def side_by_side(
    work: Callable[[str, Workspace], _Result],
    names: Iterable[str],
    workers: int,
    *,
    memory: int = 0,
) -> Iterator[tuple[str, _Result]]:
    """Do something for each name, several at a time.

    Arithmetic inside one module then takes one thread, which leaves none waiting for another.

    Args:
        work: Takes a name and memory that it may use until it returns.
        names: The names.
        workers: How many at a time, at least 1; with 1 nothing is started.
        memory: Bytes that all of them may take together to save time.

    Yields:
        The names, in their order, and what came of them.

    Raises:
        Exception: The first that ``work`` raised; what runs by then is waited for.
    """
    if workers == 1:
        workspace = Workspace(memory)
        for name in names:
            yield name, work(name, workspace)
        return
    held = threading.local()
    threads = torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(1)
        held.workspace = Workspace(memory // workers)

    def run(name: str) -> _Result:
        return work(name, held.workspace)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="module", initializer=begin)
    waiting: deque[tuple[str, Future[_Result]]] = deque()
    try:
        for name in names:
            waiting.append((name, pool.submit(run, name)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
