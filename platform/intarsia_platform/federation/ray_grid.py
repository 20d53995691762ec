"""Virtual clients answered by Ray workers, on this machine or on a cluster.

A few worker processes play all clients. Messages wait here and go to whichever worker is idle, a
chunk at a time; which one that is has no influence on a result, as a client's state travels with
its message.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from flwr.app import Message
from flwr.app.user_config import UserConfigValue
from flwr.common.constant import ErrorCode
from intarsia_client.errors import FederationError, InputError

from intarsia_platform.federation.client_calls import Answer, ClientAppSource, error_reply
from intarsia_platform.federation.client_contexts import (
    StateStore,
    VirtualClient,
    VirtualClients,
)
from intarsia_platform.federation.local_grid import DEADLINE_SECONDS, LocalGrid
from intarsia_platform.federation.ray_broadcast import Broadcasts, PackedContent
from intarsia_platform.federation.ray_cluster import connect
from intarsia_platform.federation.ray_pool import Outcome, WorkerPool, WorkerSetup
from intarsia_platform.federation.ray_worker import PackedAnswers, PackedAssignment

_logger = logging.getLogger(__name__)
_CHUNK_SECONDS = 0.03
_CHUNK_BYTES = 8 * 2**20
_WAIT_SECONDS = 0.05
_OBJECT_STORE_BYTES = 256 * 2**20


class ChunkSizes:
    """How many messages a worker is given at once.

    A chunk is one message until it is known how long they take. Then it grows, at most twofold at
    a time, while a chunk's work stays under about 30 ms: quick messages do not each pay for the
    way to the worker and back, and long ones are spread evenly.

    Args:
        workers: How many workers there are.
    """

    def __init__(self, workers: int) -> None:
        """Start with one message at a time."""
        self._workers = workers
        self._sizes: dict[str, int] = {}

    def reset(self) -> None:
        """Forget what was measured, as the next messages may be of another kind."""
        self._sizes.clear()

    def size(self, message_type: str, waiting: int) -> int:
        """Choose a chunk's size.

        Args:
            message_type: The messages' type.
            waiting: How many messages wait to be sent.

        Returns:
            The size, at least 1; such that what remains keeps all workers busy.
        """
        return max(1, min(self._sizes.get(message_type, 1), waiting // (2 * self._workers)))

    def measured(self, message_type: str, count: int, seconds: float) -> None:
        """Learn from a chunk that was answered.

        Args:
            message_type: The messages' type.
            count: How many messages it held.
            seconds: How long the worker took over them.
        """
        fitting = int(_CHUNK_SECONDS * count / max(seconds, 1e-6))
        grown = max(self._sizes.get(message_type, 1), 2 * count)
        self._sizes[message_type] = max(1, min(fitting, grown))


@dataclass(kw_only=True)
class _Task:
    """What the grid knows of a message that workers shall answer."""

    content: PackedContent
    crashes: int = 0


class RayGrid(LocalGrid):
    """A grid whose clients run in Ray workers that stay for the grid's whole life.

    A worker that ends on its own (killed, out of memory, a fault in native code) is replaced. Its
    unfinished messages are sent again, each by itself, since one of them may have been the cause.
    A message whose worker ends ``attempts`` times is answered with an error. A message that is
    cancelled while a worker is busy with it costs that worker its process.

    A Ray started here ends with the thread that made the grid, at the latest.

    Records and arrays over 64 KiB that messages of one push share, as the same objects, are
    stored in Ray once and fetched once by each worker.

    Args:
        client_app: ``"module:attribute"``, importable in a worker, or an app or a function that
            makes it, which cloudpickle carries there.
        clients: The virtual clients.
        workers: How many worker processes there are.
        cpus_per_worker: CPUs that Ray sets aside for each, and threads its libraries may use. Where
            None, they share this machine's cores equally, or take one CPU each of a cluster.
        gpus_per_worker: GPUs that Ray sets aside for each; a share from 0 to 1, or a whole number.
        address: ``host:port`` of a Ray cluster; where None, ``RAY_ADDRESS``, else a Ray is started
            on this machine for as long as the grid lives.
        run_id: Flower's run id, which clients see in their context.
        run_config: What clients see as ``Context.run_config``.
        states: Where client states are kept; in this process, bounded, where None.
        deadline_seconds: How long ``send_and_receive`` waits where it is given no timeout.
        attempts: How often a message is tried when its worker ends.
        environment: Environment variables of the workers. ``OMP_NUM_THREADS`` is set to a worker's
            share of the cores unless it is here or in this process's own environment.
        start_seconds: How long a worker's start may take.
        object_store_bytes: Size of the object store of a Ray started here; larger data goes
            through the disk.

    Raises:
        InputError: If an argument is not usable, the client app cannot be loaded in a worker, or
            Ray lacks the CPUs or GPUs asked for.
        FederationError: If Ray cannot be reached or started, or workers do not start in time.
    """

    def __init__(
        self,
        client_app: ClientAppSource,
        clients: VirtualClients | Sequence[VirtualClient],
        *,
        workers: int = 2,
        cpus_per_worker: float | None = None,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        run_id: int = 0,
        run_config: Mapping[str, UserConfigValue] | None = None,
        states: StateStore | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        attempts: int = 3,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = 120.0,
        object_store_bytes: int = _OBJECT_STORE_BYTES,
    ) -> None:
        """Connect to Ray and start the workers."""
        if attempts < 1:
            raise InputError("attempts", attempts, "give a whole number of at least 1")
        super().__init__(
            clients=clients,
            run_id=run_id,
            run_config=run_config,
            states=states,
            deadline_seconds=deadline_seconds,
        )
        self._attempts = attempts
        self._queue: deque[str] = deque()
        self._alone: deque[str] = deque()
        self._tasks: dict[str, _Task] = {}
        self._sizes = ChunkSizes(workers)
        self._broadcasts = Broadcasts()
        self._connection = connect(
            address=address,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            object_store_bytes=object_store_bytes,
        )
        needs = self._connection.needs
        threads = os.environ.get("OMP_NUM_THREADS", str(needs.threads))
        setup = WorkerSetup(
            client_app=ray.cloudpickle.dumps(client_app),
            run_config=self._run_config,
            run_id=run_id,
            environment={"OMP_NUM_THREADS": threads, **(environment or {})},
            start_seconds=start_seconds,
        )
        try:
            self._pool = WorkerPool(needs, setup)
        except BaseException:
            self._connection.close()
            raise

    @property
    def stored_broadcasts(self) -> int:
        """How many records and arrays were stored in Ray to be shared by several messages."""
        return self._broadcasts.stored

    def close(self) -> None:
        """End the workers, and Ray where this grid started it."""
        self._pool.close()
        super().close()
        self._connection.close()

    def _accept(self, messages: Mapping[str, Message]) -> None:
        if not self._tasks:
            self._sizes.reset()
        for message_id, content in self._broadcasts.pack(messages).items():
            self._tasks[message_id] = _Task(content=content)
            self._queue.append(message_id)
        self._dispatch()

    def _work_on(self, wanted: set[str]) -> None:
        # Begins to replace workers that ended, which the wait below then notices.
        self._dispatch()
        for outcome in self._pool.wait(_WAIT_SECONDS):
            self._take_in(outcome)
        self._dispatch()

    def _abandon(self, cancelled: set[str]) -> None:
        for message_id in cancelled:
            self._forget(message_id)
        self._queue = deque(waiting for waiting in self._queue if waiting not in cancelled)
        self._alone = deque(waiting for waiting in self._alone if waiting not in cancelled)
        for worker in self._pool.busy():
            if worker.task is not None and not any(name in self._pending for name in worker.task):
                worker.stop()

    def _dispatch(self) -> None:
        """Give idle workers something to do."""
        if not (self._queue or self._alone):
            return
        self._pool.fill()
        for worker in self._pool.idle():
            chunk = self._next_chunk()
            if not chunk:
                return
            keys = frozenset[int]().union(*(packed.content.keys for packed in chunk.values()))
            payload = pickle.dumps(list(chunk.values()), protocol=5)
            worker.give(tuple(chunk), payload, self._broadcasts.references(keys))

    def _next_chunk(self) -> dict[str, PackedAssignment]:
        """Take from what waits: first what must travel alone, then messages of one type."""
        if self._alone:
            message_id = self._alone.popleft()
            return {message_id: self._packed(message_id)}
        if not self._queue:
            return {}
        message_type = self._message_type(self._queue[0])
        limit = self._sizes.size(message_type, len(self._queue))
        chunk: dict[str, PackedAssignment] = {}
        size = 0
        while self._queue and len(chunk) < limit and size < _CHUNK_BYTES:
            message_id = self._queue[0]
            if self._message_type(message_id) != message_type:
                break
            packed = chunk[message_id] = self._packed(message_id)
            size += packed.content.size + len(packed.state or b"")
            self._queue.popleft()
        return chunk

    def _packed(self, message_id: str) -> PackedAssignment:
        assignment = self._assignment(self._pending[message_id])
        return PackedAssignment(
            assignment.message.metadata,
            self._tasks[message_id].content,
            assignment.node_config,
            assignment.state,
        )

    def _message_type(self, message_id: str) -> str:
        return self._pending[message_id].metadata.message_type

    def _take_in(self, outcome: Outcome) -> None:
        if outcome.result is None:
            self._try_again(outcome.task, outcome.cause)
            return
        # Written by a worker of this grid, which runs the same code on one's own behalf.
        packed: PackedAnswers = pickle.loads(outcome.result)  # noqa: S301
        first = packed.answers[0].reply.metadata.message_type
        self._sizes.measured(first, len(packed.answers), packed.seconds)
        for message_id, answered in zip(outcome.task, packed.answers, strict=True):
            self._finish(message_id, answered)
            self._forget(message_id)

    def _try_again(self, chunk: Sequence[str], cause: str) -> None:
        """Send again what a worker that ended left unanswered, or answer it with an error."""
        _logger.warning("a Ray worker ended (%s) while %d messages were with it", cause, len(chunk))
        for message_id in chunk:
            message = self._pending.get(message_id)
            if message is None:
                continue
            task = self._tasks[message_id]
            task.crashes += 1
            # One that only ever travelled with others may be innocent, and gets a try alone.
            if task.crashes < self._attempts or len(chunk) > 1:
                self._alone.append(message_id)
                continue
            error = FederationError(
                f"message {message_id} to node {message.metadata.dst_node_id}",
                f"its Ray worker ended {task.crashes} times ({cause})",
                "see that a worker's memory suffices, or run it in the in-process grid",
            )
            reply = error_reply(message, ErrorCode.CLIENT_APP_CRASHED, str(error))
            self._finish(message_id, Answer(reply=reply, state=None))
            self._forget(message_id)

    def _forget(self, message_id: str) -> None:
        task = self._tasks.pop(message_id, None)
        if task is not None:
            self._broadcasts.release(task.content)
