"""What computes: the base with its seams, the bank, the retriever, and the engine over them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from intarsia_client.base_model import BaseModel
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.records import Record
from intarsia_continual.retrieval import Choice

from intarsia_platform.access.ticket import Ticket
from intarsia_platform.answering.bases import BaseChoice
from intarsia_platform.answering.choosing import Chooser
from intarsia_platform.answering.descriptors import DescriptorShelf
from intarsia_platform.answering.encoders import EncoderShelf
from intarsia_platform.answering.library import Library
from intarsia_platform.answering.settings import ServiceSettings
from intarsia_platform.answering.use import Use, UseKind
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.store import Groups
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.cache import BLOCK
from intarsia_platform.serving.engine import Engine, EngineBusy, Request, Statistics
from intarsia_platform.serving.grants import Admission
from intarsia_platform.serving.runner import Shapes, all_shapes
from intarsia_platform.serving.sampling import Sampling
from intarsia_platform.serving.scoring import Scores, score_for_ticket
from intarsia_platform.serving.served_base import ServedBase
from intarsia_platform.serving.streams import Stream

_LONGEST_ROW = 2048
_LONGEST_SCORED = 512


class Machine:
    """One base and what answers with it. Safe for several threads.

    Nothing is looked for in the background: with each request it is seen whether the epoch has
    moved, and what left the registry then leaves memory. New adapters are found by tickets.

    Args:
        base: The base to load.
        database: The home's database.
        store: The home's store.
        key: The home's key, against which each adapter's signature is checked when it is read.
        admission: Access control.
        settings: How to serve.

    Raises:
        InputError: If the base cannot be loaded or a setting is out of range.
        RuntimeError: If this process serves the base already.
    """

    def __init__(
        self,
        base: BaseChoice,
        database: Database,
        store: ContentStore,
        key: SigningKey,
        admission: Admission,
        settings: ServiceSettings,
    ) -> None:
        """Load the base; adapters and the engine wait until they are wanted."""
        groups = Groups(database, store)

        def read(digest: str) -> EncodedAdapter:
            return groups.admitted(digest, key)

        self.base: BaseModel = base.load()
        longest = self.base.longest_sequence
        self.row_tokens = settings.row_tokens or min(_LONGEST_ROW, longest)
        self.library = Library(database, base)
        self.encoders = EncoderShelf(self.base)
        self.descriptors = DescriptorShelf(store, settings.descriptor_bytes)
        self.bank = AdapterBank(self.base, read, capacity_bytes=settings.bank_bytes)
        self._score_tokens = settings.score_tokens or min(_LONGEST_SCORED, longest)
        self._settings = settings
        self._admission = admission
        self._chooser = Chooser(
            admission,
            self.library,
            self.descriptors,
            self.encoders,
            settings.retrieval,
            self.base.task,
        )
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        self._epoch: int | None = None
        self._engine: Engine | None = None
        self._ended = False
        self._served = ServedBase(self.base)

    @property
    def alive(self) -> bool:
        """Whether it can answer: the engine's thread runs, or has not been wanted yet."""
        engine = self._engine
        return engine is None or engine.alive

    @property
    def statistics(self) -> Statistics | None:
        """What the engine does now, None before it began."""
        engine = self._engine
        return None if engine is None else engine.statistics

    def engine(self) -> Engine:
        """The engine, begun when it is first wanted.

        Returns:
            The engine.

        Raises:
            EngineBusy: If answers were ended.
            InputError: If the base cannot write.
        """
        with self._beginning:
            if self._ended:
                raise EngineBusy("service", "is closed", "start it again")
            if self._engine is None:
                self._engine = Engine(
                    self._served,
                    self.bank,
                    self._admission,
                    max_rows=self._settings.max_rows,
                    row_tokens=self.row_tokens,
                    max_waiting=self._settings.max_waiting,
                    shapes=_alone(self.row_tokens) if self._settings.alone else None,
                    prefix_bytes=self._settings.prefix_bytes,
                )
            return self._engine

    def choose(self, ticket: Ticket, text: str, use: Use) -> tuple[Choice, ...]:
        """Choose the adapters of one answer.

        Args:
            ticket: What the caller may use.
            text: What is retrieved by.
            use: What the caller wants.

        Returns:
            The choices.

        Raises:
            IntarsiaError: As :meth:`Chooser.choose`.
        """
        self._forget_since()
        return self._chooser.choose(ticket, text, use)

    def routing(self, use: Use) -> str:
        """The router of what retrieval chose, empty where weights say how much.

        Args:
            use: What the caller wants.

        Returns:
            Its name.
        """
        return self._settings.retrieval.router if use.kind is UseKind.AUTO else ""

    def submit(
        self,
        ticket: Ticket,
        prompt: Sequence[int],
        choices: Sequence[Choice],
        sampling: Sampling,
        routing: str = "",
    ) -> Stream:
        """Begin an answer.

        Args:
            ticket: What the caller may use; used up.
            prompt: Its tokens.
            choices: What :meth:`choose` gave.
            sampling: How tokens are chosen.
            routing: What :meth:`routing` gave.

        Returns:
            The engine's stream.

        Raises:
            IntarsiaError: As :meth:`Engine.submit`.
        """
        engine = self.engine()
        request = Request(
            ticket=ticket, prompt=prompt, choices=choices, routing=routing, sampling=sampling
        )
        try:
            return engine.submit(request)
        finally:
            # What left while it was read must not stay in the bank.
            self._forget_since(ticket.epoch)

    def score(
        self,
        ticket: Ticket,
        records: Sequence[Record],
        choices: Sequence[Sequence[Choice]],
        routing: str = "",
    ) -> Scores:
        """Score records.

        Args:
            ticket: What the caller may use; used up.
            records: The records.
            choices: What :meth:`choose` gave for each.
            routing: What :meth:`routing` gave.

        Returns:
            The scores.

        Raises:
            IntarsiaError: As :func:`intarsia_platform.serving.scoring.score_for_ticket`.
        """
        try:
            return score_for_ticket(
                self._served,
                self.bank,
                self._admission,
                ticket,
                records,
                choices,
                max_length=self._score_tokens,
                routing=routing,
            )
        finally:
            self._forget_since(ticket.epoch)

    def end_answers(self) -> None:
        """End every answer; none begins any more. Again does nothing."""
        with self._beginning:
            self._ended = True
            engine = self._engine
        if engine is not None:
            engine.close()

    def close(self) -> None:
        """End every answer and leave the base as it was; again does nothing."""
        self.end_answers()
        self._served.close()

    def forget_departed(self) -> None:
        """Let go of what left the registry, as each request does; for when nobody asks.

        Raises:
            StorageError: If the database cannot be read.
        """
        self._forget_since()

    def rest(self) -> None:
        """Let go of what the next answer can make again; for when nothing runs."""
        self._served.release()

    def _forget_since(self, epoch: int | None = None) -> None:
        """Let go of what left the registry, if the epoch has moved since it was last looked at.

        Args:
            epoch: Look also if it has moved since this one.
        """
        now = self._admission.epoch()
        with self._lock:
            if now == self._epoch and epoch in (None, now):
                return
            self.library.clear()
            self.descriptors.clear()
            for digest in self.library.gone(self.bank.digests):
                self.bank.drop(digest)
                # Equal records trained again give an equal adapter: the registry says, not we,
                # whether it may be read again.
                self.bank.restore(digest)
            self._epoch = now


def _alone(row_tokens: int) -> Shapes:
    """Each row by itself: its numbers cannot depend on batch mates, and nothing is measured."""
    capacity = -(-row_tokens // BLOCK) * BLOCK
    return Shapes(rows=(), visible=all_shapes(1, capacity).visible)
