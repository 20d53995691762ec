"""A fixed number of Ray workers, each replaced when it ends on its own.

The pool knows nothing of messages: it carries bytes to an idle worker and bytes, or the news that
the worker is gone, back to the grid.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from flwr.app.user_config import UserConfigValue
from intarsia_client.errors import FederationError
from ray.exceptions import RayError, RayTaskError

from intarsia_platform.federation.client_calls import one_line
from intarsia_platform.federation.ray_cluster import WorkerNeeds
from intarsia_platform.federation.ray_worker import ClientWorker

_STARTS_PER_WORKER = 3


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What every worker is given when it starts.

    Attributes:
        client_app: The client app's source, as cloudpickle wrote it.
        run_config: What clients see as ``Context.run_config``.
        run_id: Flower's run id.
        environment: Environment variables to set.
        start_seconds: How long a start may take.
    """

    client_app: bytes
    run_config: Mapping[str, UserConfigValue]
    run_id: int
    environment: Mapping[str, str]
    start_seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task.

    Attributes:
        task: What the grid named it.
        result: The worker's bytes, or None where the worker ended first.
        cause: Why it ended, on one line; empty where it did not.
    """

    task: tuple[str, ...]
    result: bytes | None
    cause: str = ""


class Worker:
    """One place in the pool; at most one process, and one task at a time.

    Attributes:
        task: The task under way, or None.
    """

    def __init__(self) -> None:
        """Start without a process."""
        self.task: tuple[str, ...] | None = None
        self._actor: Any = None
        self._expected: ray.ObjectRef | None = None
        self._start_by = 0.0
        self._starts = 0

    @property
    def expected(self) -> ray.ObjectRef | None:
        """What the worker will give next: its readiness, or its task's result."""
        return self._expected

    @property
    def idle(self) -> bool:
        """Whether it is ready for a task."""
        return self._actor is not None and self._expected is None

    @property
    def absent(self) -> bool:
        """Whether it has no process, not even one that is starting."""
        return self._actor is None

    @property
    def overdue(self) -> bool:
        """Whether its start takes too long."""
        starting = self._expected is not None and self.task is None
        return starting and time.monotonic() > self._start_by

    def start(self, actor_class: Any, setup: WorkerSetup) -> None:
        """Begin to start a process.

        Args:
            actor_class: The actor class with its resources.
            setup: What the process is given.

        Raises:
            FederationError: If too many in a row have ended while starting.
        """
        if self._starts == _STARTS_PER_WORKER:
            raise FederationError(
                "Ray worker",
                f"ended {self._starts} times while starting",
                "see that the machine has memory to spare, and Ray's logs for the cause",
            )
        self._starts += 1
        self._start_by = time.monotonic() + setup.start_seconds
        self._actor = actor_class.remote(
            dict(setup.environment), [str(Path(path).absolute()) for path in sys.path]
        )
        self._expected = self._actor.prepare.remote(
            setup.client_app, dict(setup.run_config), setup.run_id
        )

    def give(
        self, task: tuple[str, ...], payload: bytes, references: Mapping[int, ray.ObjectRef]
    ) -> None:
        """Give an idle worker a task.

        Args:
            task: The task's name.
            payload: What to answer.
            references: Ray objects that the payload refers to.
        """
        self.task = task
        self._expected = self._actor.answer.remote(payload, dict(references))

    def take(self) -> Any:
        """Take what was expected and has come.

        Returns:
            The value.

        Raises:
            RayError: If the process ended first; it is gone then.
        """
        expected, self._expected = self._expected, None
        try:
            value = ray.get(expected)
        except RayError:
            self.stop()
            raise
        self._starts = 0
        return value

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        actor, self._actor, self._expected, self.task = self._actor, None, None, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


class WorkerPool:
    """The workers of a grid.

    Args:
        needs: How many, and what Ray sets aside for each.
        setup: What each is given.

    Raises:
        InputError: If the client app cannot be used.
        FederationError: If the workers do not all start in time.
    """

    def __init__(self, needs: WorkerNeeds, setup: WorkerSetup) -> None:
        """Start the workers and wait until they are ready."""
        self._setup = setup
        self._actor_class = ray.remote(ClientWorker).options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, scheduling_strategy="SPREAD"
        )
        self._workers = [Worker() for _ in range(needs.workers)]
        try:
            while not all(worker.idle for worker in self._workers):
                self.fill()
                list(self.wait(setup.start_seconds))
        except BaseException:
            self.close()
            raise

    def fill(self) -> None:
        """Begin to start a process wherever there is none.

        Raises:
            FederationError: If a worker has ended too often while starting.
        """
        for worker in self._workers:
            if worker.absent:
                worker.start(self._actor_class, self._setup)

    def idle(self) -> list[Worker]:
        """Find the workers that are ready for a task."""
        return [worker for worker in self._workers if worker.idle]

    def busy(self) -> list[Worker]:
        """Find the workers that have a task."""
        return [worker for worker in self._workers if worker.task is not None]

    def wait(self, seconds: float) -> Iterator[Outcome]:
        """Wait until something comes of the tasks or starts under way.

        Args:
            seconds: How long to wait at most for the first of them.

        Yields:
            What came of each task that is no longer under way.

        Raises:
            InputError: If the client app cannot be used.
            FederationError: If a worker's start takes too long.
        """
        expected = {
            worker.expected: worker for worker in self._workers if worker.expected is not None
        }
        if not expected:
            return
        ready, _ = ray.wait(list(expected), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(expected), num_returns=len(expected), timeout=0)
        for reference in ready:
            yield from self._outcome(expected[reference])
        if any(worker.overdue for worker in self._workers):
            raise FederationError(
                "Ray workers",
                f"not started within {self._setup.start_seconds:g} seconds",
                "free the CPUs, GPUs and memory that they ask for, or use fewer workers",
            )

    def _outcome(self, worker: Worker) -> Iterator[Outcome]:
        task = worker.task
        try:
            value = worker.take()
        except RayError as error:
            if task is not None:
                yield Outcome(task=task, result=None, cause=_cause(error))
            return
        worker.task = None
        if task is not None:
            yield Outcome(task=task, result=value)
        elif value is not None:
            raise value

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.stop()


def _cause(error: RayError) -> str:
    """Say why a task failed: what was raised in the worker, or how the worker ended."""
    return one_line(error.cause) if isinstance(error, RayTaskError) else type(error).__name__
