"""What the in-process grid and the Ray grid have in common.

A local grid plays Flower's network for virtual clients: the same ``Strategy`` and ``ClientApp``
that run over SuperLink and SuperNodes run over it, unchanged. It numbers messages, knows its
nodes, keeps each client's state, and waits for replies until a deadline and no longer.
"""

from __future__ import annotations

import copy
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.user_config import UserConfigValue
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from intarsia_client.errors import InputError

from intarsia_platform.federation.client_calls import Answer, Assignment, error_reply
from intarsia_platform.federation.client_contexts import (
    MemoryStates,
    StateStore,
    VirtualClient,
    VirtualClients,
    load_state,
    round_number,
)

DEADLINE_SECONDS = 3600.0
"""How long a grid waits for replies where nobody says."""


class LocalGrid(Grid):
    """A grid over virtual clients on machines of one's own.

    Use it as a context manager, or call :meth:`close`. It is used from one thread.

    Besides Flower's contract it promises: a reply is given out once; replies of
    :meth:`send_and_receive` come in the order of their messages, whichever finished first; what a
    client's training left is saved before its reply is given out; a message that was cancelled or
    whose deadline has passed is never answered later.

    Args:
        clients: The virtual clients.
        run_id: Flower's run id, which clients see in their context.
        run_config: What clients see as ``Context.run_config``.
        states: Where client states are kept; in this process, bounded, where None.
        deadline_seconds: How long :meth:`send_and_receive` waits where it is given no timeout.

    Raises:
        InputError: If a node id stands for two clients, or the deadline is not a positive number.
    """

    def __init__(
        self,
        *,
        clients: VirtualClients | Sequence[VirtualClient],
        run_id: int,
        run_config: Mapping[str, UserConfigValue] | None,
        states: StateStore | None,
        deadline_seconds: float,
    ) -> None:
        """Take note of the clients and let Flower know who sends."""
        if not (math.isfinite(deadline_seconds) and deadline_seconds > 0):
            raise InputError(
                "grid's deadline_seconds", deadline_seconds, "give a positive number of seconds"
            )
        self._clients = (
            clients if isinstance(clients, VirtualClients) else VirtualClients.listed(clients)
        )
        ids = self._clients.node_ids
        self._known = ids if isinstance(ids, range) else frozenset(ids)
        self._run_config = dict(run_config or {})
        self._states = MemoryStates() if states is None else states
        self._deadline_seconds = deadline_seconds
        self._sent = 0
        # In the order sent: what is still to be answered, and what waits to be given out.
        self._pending: dict[str, Message] = {}
        self._finished: dict[str, tuple[Message, float]] = {}
        self._unsaved: list[tuple[int, int, bytes]] = []
        self.set_run(Run.create_empty(run_id))

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to.

        Args:
            run: Flower's run.
        """
        self._run = run
        # A flwr Message reads these of the process when it is made.
        TaskIdentity.run_id = run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        TaskIdentity.task_id = 0

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message of this run.

        Args:
            content: The records to send.
            message_type: ``"train"``, ``"evaluate"`` or ``"query"``, and an action where wanted.
            dst_node_id: The client.
            group_id: The round, in decimal digits.
            ttl: How long the message is valid, in seconds; Flower's default where None.

        Returns:
            The message.
        """
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Name all clients.

        Returns:
            Their node ids, in the order in which they were given.
        """
        return self._clients.node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; the messages given stay as they are.

        Args:
            messages: The messages; one to a node that is not there is answered with an error.

        Returns:
            An id for each message, in their order.
        """
        ids: list[str] = []
        accepted: dict[str, Message] = {}
        for message in messages:
            numbered = self._numbered(message)
            message_id = numbered.metadata.message_id
            ids.append(message_id)
            self._pending[message_id] = numbered
            if message.metadata.dst_node_id in self._known:
                accepted[message_id] = numbered
            else:
                reason = f"node {message.metadata.dst_node_id} is not in this grid"
                self._give(message_id, error_reply(numbered, ErrorCode.NODE_UNAVAILABLE, reason))
        if accepted:
            self._accept(accepted)
        return ids

    def _numbered(self, message: Message) -> Message:
        metadata = copy.copy(message.metadata)
        # flwr leaves these to the SuperLink, which sets them in the same way.
        metadata.__dict__["_message_id"] = f"{self._run.run_id}-{self._sent}"
        metadata.__dict__["_run_id"] = self._run.run_id
        metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        self._sent += 1
        return make_message(metadata, message.content)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Get the replies that are there; a short while is spent on having some.

        A loop over this method needs no pause of its own: each call works or waits for a fraction
        of a second, unless one client's own work takes longer in this process.

        Args:
            message_ids: What to look for.

        Returns:
            The replies among them not given out before, in the order in which they were finished.

        Raises:
            StorageError: If client states cannot be saved.
        """
        return [reply for reply, _ in self._pull(message_ids)]

    def _pull(self, message_ids: Iterable[str]) -> list[tuple[Message, float]]:
        asked = set(message_ids)
        try:
            if not asked.isdisjoint(self._pending):
                self._work_on(asked)
        finally:
            self._save_states()
        finished = [message_id for message_id in self._finished if message_id in asked]
        return [self._finished.pop(message_id) for message_id in finished]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies until a deadline.

        Args:
            messages: The messages.
            timeout: How long to wait, in seconds; the grid's ``deadline_seconds`` where None.

        Returns:
            The replies finished in time, in the order of their messages. Other messages are
            cancelled.

        Raises:
            StorageError: If client states cannot be saved.
        """
        seconds = self._deadline_seconds if timeout is None else timeout
        deadline = time.monotonic() + seconds
        ids = list(self.push_messages(messages))
        replies: dict[str, Message] = {}
        waiting = dict.fromkeys(ids)
        try:
            while waiting and time.monotonic() < deadline:
                for reply, finished_at in self._pull(waiting):
                    message_id = reply.metadata.reply_to_message_id
                    del waiting[message_id]
                    if finished_at <= deadline:
                        replies[message_id] = reply
        finally:
            self.cancel_messages(waiting)
        return [replies[message_id] for message_id in ids if message_id in replies]

    def cancel_messages(self, message_ids: Iterable[str]) -> None:
        """Forget messages: they are never answered, and work on them stops where it can.

        Args:
            message_ids: The ids that :meth:`push_messages` gave; unknown ones are passed over.
        """
        cancelled = set(message_ids)
        for message_id in cancelled:
            self._finished.pop(message_id, None)
        cancelled = {message_id for message_id in cancelled if self._pending.pop(message_id, None)}
        if cancelled:
            self._abandon(cancelled)

    def close(self) -> None:
        """Forget everything and let go of what was started; harmless when called again."""
        self.cancel_messages([*self._pending, *self._finished])

    def __enter__(self) -> Self:
        """Use the grid."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the grid."""
        self.close()

    @abstractmethod
    def _accept(self, messages: Mapping[str, Message]) -> None:
        """Take up messages that clients of this grid shall answer, by id in the order sent."""

    @abstractmethod
    def _work_on(self, wanted: set[str]) -> None:
        """Spend a short while on having some of these pending messages answered."""

    @abstractmethod
    def _abandon(self, cancelled: set[str]) -> None:
        """Stop work on messages that were accepted and are no longer pending."""

    def _assignment(self, message: Message) -> Assignment:
        metadata = message.metadata
        return Assignment(
            message=message,
            node_config=self._clients.node_config(metadata.dst_node_id),
            state=load_state(self._states, metadata),
        )

    def _finish(self, message_id: str, answer: Answer) -> None:
        """Take in an answer, unless its message was cancelled meanwhile."""
        message = self._pending.get(message_id)
        if message is None:
            return
        if answer.state is not None:
            metadata = message.metadata
            self._unsaved.append((metadata.dst_node_id, round_number(metadata), answer.state))
        self._give(message_id, answer.reply)

    def _give(self, message_id: str, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = f"{message_id}-reply"
        self._finished[message_id] = (reply, time.monotonic())
        del self._pending[message_id]

    def _save_states(self) -> None:
        if self._unsaved:
            self._states.save_many(self._unsaved)
            self._unsaved = []
