"""What was asked and answered, in the audit log: never a word of a prompt or an answer."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intarsia_client.errors import AccessError

from intarsia_platform.access.audit import AuditLog, append_entry, checked_event
from intarsia_platform.access.refusal import shown
from intarsia_platform.access.ticket import Ticket
from intarsia_platform.answering.answers import Used, labels_of
from intarsia_platform.answering.use import Use
from intarsia_platform.registry.database import Database
from intarsia_platform.serving.streams import Finish, Stream, Token

_STEPS = 16
_AT_ONCE = 64
_FAILED = Token(token=None, text="", finish=Finish.FAILED)


@dataclass(kw_only=True, eq=False)
class _Followed:
    """One stream that is being followed."""

    inner: Stream
    outer: Stream
    event: Mapping[str, Any]
    began: float
    tokens: int = 0
    last: Token = _FAILED

    def end(self, failure: BaseException | None = None) -> None:
        """Give out the last event; what is not in the log is not given out as a whole answer."""
        if failure is not None:
            self.outer.put(_FAILED, failure)
        else:
            self.outer.put(self.last, self.inner.error)


class AuditTrail:
    """Writes one entry an answer. Safe for several threads; one thread of its own writes.

    Answers that end while an entry is being written share the next transaction, in the order in
    which they ended.

    Formal guarantee: the last event of a stream that :meth:`follow` gives comes after the audit
    log has the answer's entry; where that cannot be written, the stream fails instead of ending.

    Args:
        database: The database of the log.
        clock: Seconds that only rise, for how long an answer took.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin the thread."""
        self._database = database
        self._log = AuditLog(database)
        self._clock = clock
        self._ended: queue.SimpleQueue[_Followed | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="intarsia-audit", daemon=True)
        self._thread.start()

    def follow(self, inner: Stream, event: Mapping[str, Any]) -> Stream:
        """Hand a stream's events on, and write its entry when it has ended.

        Args:
            inner: The engine's stream; nobody else reads it.
            event: The entry but for how the answer ended.

        Returns:
            The stream for the caller. Cancelling it cancels the other.
        """
        outer = Stream(inner.cancel)
        followed = _Followed(inner=inner, outer=outer, event=event, began=self._clock())

        def hand_on(token: Token) -> None:
            # In the engine's thread: whatever takes time is for the thread that writes.
            followed.tokens += token.token is not None
            if token.finish is None:
                outer.put(token)
                if outer.cancelled:
                    inner.cancel()
            else:
                followed.last = token
                self._ended.put(followed)

        inner.listen(hand_on)
        return outer

    def append(self, event: Mapping[str, Any]) -> None:
        """Write an entry now.

        Args:
            event: The entry.

        Raises:
            StorageError: If it cannot be written.
        """
        self._log.append(event)

    @contextlib.contextmanager
    def refusals(self, event: Mapping[str, Any]) -> Iterator[None]:
        """Write an entry of whatever is refused in a block.

        Args:
            event: The entry but for the decision.

        Yields:
            Nothing.

        Raises:
            AccessError: What the block raised, its entry written.
        """
        try:
            yield
        except AccessError:
            self._log.append({**event, "decision": "refuse"})
            raise

    def close(self) -> None:
        """Write what is left and end the thread; every stream must have ended before."""
        self._ended.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _write(self) -> None:
        while (first := self._ended.get()) is not None:
            batch, closing = [first], False
            with contextlib.suppress(queue.Empty):
                while len(batch) < _AT_ONCE and not closing:
                    following = self._ended.get_nowait()
                    closing = following is None
                    batch += [] if following is None else [following]
            self._write_all(batch)
            if closing:
                return

    def _write_all(self, batch: Sequence[_Followed]) -> None:
        """Write the entries of a batch, then end its streams."""
        good: list[tuple[_Followed, dict[str, Any]]] = []
        for followed in batch:
            try:
                # What cannot be an entry takes no other answer's with it.
                good.append((followed, checked_event(self._entry(followed))))
            except Exception as failure:
                followed.end(failure)
        if not good:
            return
        try:
            with self._database.begin() as connection:
                for _, event in good:
                    append_entry(connection, event)
        except Exception as failure:
            for followed, _ in good:
                followed.end(failure)
            return
        for followed, _ in good:
            followed.end()

    def _entry(self, followed: _Followed) -> dict[str, Any]:
        return {
            **followed.event,
            "decision": "allow",
            "finish": str(followed.last.finish),
            "tokens": followed.tokens,
            "seconds": round(self._clock() - followed.began, 3),
        }


def request_event(action: str, ticket: Ticket, use: Use) -> dict[str, Any]:
    """What an entry says of a request, before anything is chosen.

    Args:
        action: ``"answer"`` or ``"score"``.
        ticket: The caller's ticket.
        use: What it wants.

    Returns:
        Fields of the entry.
    """
    return {
        "action": action,
        "principal": ticket.principal,
        "credential": ticket.credential,
        "purpose": ticket.purpose,
        "ticket": ticket.id,
        "policy_version": ticket.policy_version,
        "epoch": ticket.epoch,
        "allowed_digest": ticket.allowed_digest,
        "model": shown(use.words),
    }


def used_event(used: tuple[Used, ...]) -> dict[str, Any]:
    """What an entry says of the adapters of one answer.

    Args:
        used: The adapters.

    Returns:
        Fields of the entry; weights in sixteenths, so that a caller's exact words do not enter.
    """
    return {
        "used": [
            {"adapter": one.digest, "weight": max(1, round(one.weight * _STEPS)) / _STEPS}
            for one in used
        ],
        "labels": list(labels_of(used)),
    }
