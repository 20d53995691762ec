"""The service: one base model and all that answers with it, for as long as it is open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from intarsia_client.base_model import BaseModel
from intarsia_client.records import Record
from intarsia_client.wire import FloatArray
from intarsia_continual.retrieval import Choice

from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.judgement import Judge
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.refusal import bad_ticket, refused, shown
from intarsia_platform.access.ticket import Ticket, open_mint
from intarsia_platform.answering.answers import (
    Answered,
    ModelEntry,
    ScoredRecord,
    Scores,
    Started,
    collect,
    labels_of,
    used_of,
)
from intarsia_platform.answering.bases import choose_base
from intarsia_platform.answering.machine import Machine
from intarsia_platform.answering.prompts import Message, Prompt, Prompts, retrieval_text
from intarsia_platform.answering.settings import ServiceSettings
from intarsia_platform.answering.trail import AuditTrail, request_event, used_event
from intarsia_platform.answering.use import Use, UseKind
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.store import Groups
from intarsia_platform.home import Home
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving.engine import Statistics
from intarsia_platform.serving.sampling import Sampling

__all__ = ["AnsweringService", "Message", "Prompt", "ServiceSettings", "open_service"]


class AnsweringService:
    """Answers for principals, with what they may use and nothing else. Safe for several threads.

    A ticket of :meth:`authorize` is good for one :meth:`start`, :meth:`answer` or :meth:`score`;
    :meth:`models` and :meth:`choose` may be asked as often as wished while it holds.

    Formal guarantee: what a caller gets (answers, adapters used and their weights, the list of
    models, scores, the words of errors) is a function of the request, of the base, and of the
    policies and what is registered about the adapters that the caller may use, on this machine and
    with these settings. Adapters that the caller may not use change no byte of it. Not covered are
    how long it takes, and the refusal of work that has no room (:class:`EngineBusy`, a full bank).

    Args:
        database: The home's database.
        machine: The base with all that answers.
        authorizer: Gives and admits tickets.
    """

    def __init__(self, database: Database, machine: Machine, authorizer: Authorizer) -> None:
        """Keep the parts; the engine begins with the first answer."""
        self._database = database
        self._machine = machine
        self._authorizer = authorizer
        self._policies = PolicyStore(database)
        self._prompts = Prompts(machine.base, machine.row_tokens)
        self._trail = AuditTrail(database)
        self._closing = threading.Lock()
        self._closed = False

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self._machine.base

    @property
    def database(self) -> Database:
        """The home's database, for keys, policies and the audit log."""
        return self._database

    @property
    def policies_set(self) -> bool:
        """Whether policies are in force; without any, only the base may be used."""
        return self._policies.current() is not None

    @property
    def row_tokens(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._machine.row_tokens

    @property
    def statistics(self) -> Statistics | None:
        """What the engine does now, None before it began."""
        return self._machine.statistics

    @property
    def alive(self) -> bool:
        """Whether answers can be computed: the engine's thread runs, or was not wanted yet."""
        return self._machine.alive

    def forget_departed(self) -> None:
        """Let adapters that are no longer registered leave memory, though nobody asks.

        Raises:
            StorageError: If the database cannot be read.
        """
        self._machine.forget_departed()

    def rest(self) -> None:
        """Give back memory that the next answer can fill again; for when nothing runs."""
        self._machine.rest()

    def prepare(self) -> None:
        """Begin the engine now and not with the first answer; again does nothing.

        Raises:
            InputError: If the base cannot write.
        """
        self._machine.engine()

    def authorize(
        self,
        principal: str,
        purpose: str = "",
        credential: str = "",
        until: float | None = None,
    ) -> Ticket:
        """Decide what a principal may use now.

        Args:
            principal: Who asks.
            purpose: What for.
            credential: Identifier of the API key that the principal came with.
            until: When what the principal came with ends, in seconds since 1970; the ticket ends
                then at the latest.

        Returns:
            A ticket for one answer.

        Raises:
            AccessError: If the principal is not known; the audit log has an entry then.
            InputError: If the purpose is not a word.
        """
        with self._trail.refusals(_caller_event(principal, purpose, credential)):
            return self._authorizer.authorize(
                principal, purpose, credential=credential, until=until
            )

    def models(self, ticket: Ticket) -> tuple[ModelEntry, ...]:
        """What a caller may ask for.

        Args:
            ticket: The caller's.

        Returns:
            ``auto``, ``base``, then the adapters that the ticket grants and this service serves,
            by name.

        Raises:
            AccessError: If the ticket does not hold.
        """
        if not self._authorizer.standing(ticket, ()):
            raise bad_ticket()
        served = self._machine.library.servable(ticket.digests)
        entries = [
            ModelEntry(id=granted.name, labels=granted.labels)
            for granted in ticket.adapters
            if granted.digest in served
        ]
        first = (ModelEntry(id=str(UseKind.AUTO)), ModelEntry(id=str(UseKind.BASE)))
        return (*first, *sorted(entries, key=lambda entry: entry.id))

    def choose(self, ticket: Ticket, text: str, use: Use) -> tuple[Choice, ...]:
        """Choose adapters without answering; see :meth:`Chooser.choose`.

        Args:
            ticket: What the caller may use.
            text: What adapters are retrieved by.
            use: What the caller wants.

        Returns:
            The choices; empty where the base answers alone.

        Raises:
            AccessError: As :meth:`start`.
            InputError: As :meth:`start`.
        """
        return self._machine.choose(ticket, text, use)

    def start(
        self, ticket: Ticket, prompt: Prompt, use: Use, sampling: Sampling | None = None
    ) -> Started:
        """Begin an answer.

        The audit log gets one entry: of a refusal at once, of an answer when it has ended.

        Args:
            ticket: What the caller may use; used up.
            prompt: A text to go on from, or a conversation.
            use: What the caller wants to be answered with.
            sampling: How tokens are chosen; greedy by default.

        Returns:
            The answer on its way.

        Raises:
            AccessError: If the ticket does not hold or was used before, or does not grant what is
                named; in the same words whether that exists or not.
            EngineBusy: If too many requests wait, or the service is closed.
            InputError: If prompt or use cannot be served.
            IntegrityError: If an adapter's or a descriptor's bytes are damaged.
            StorageError: If database, store or audit log cannot be used.
        """
        event = request_event("answer", ticket, use)
        with self._trail.refusals(event):
            tokens = self._prompts.tokens(prompt)
            choices = self.choose(ticket, retrieval_text(prompt), use)
            used = used_of(ticket, choices)
            inner = self._machine.submit(
                ticket, tokens, choices, sampling or Sampling(), self._machine.routing(use)
            )
        return Started(
            stream=self._trail.follow(inner, {**event, **used_event(used)}),
            used=used,
            labels=labels_of(used),
            prompt_tokens=len(tokens),
        )

    def answer(
        self, ticket: Ticket, prompt: Prompt, use: Use, sampling: Sampling | None = None
    ) -> Answered:
        """Answer, and wait for the end.

        Args:
            ticket: As :meth:`start`.
            prompt: As :meth:`start`.
            use: As :meth:`start`.
            sampling: As :meth:`start`.

        Returns:
            The answer; one that was revoked or cancelled on its way is as far as it came.

        Raises:
            AccessError: As :meth:`start`.
            IntarsiaError: As :meth:`start`, or if it could not be computed.
        """
        return collect(self.start(ticket, prompt, use, sampling))

    def score(self, ticket: Ticket, records: Sequence[Record], use: Use) -> Scores:
        """Say how well records are predicted; each is retrieved for by its own text.

        Args:
            ticket: What the caller may use; used up.
            records: The records, at least one.
            use: What the caller wants them predicted with.

        Returns:
            The scores, once the audit log has an entry.

        Raises:
            AccessError: As :meth:`start`, or if the ticket does not hold any more before the end.
            InputError: If records or use cannot be served.
            IntegrityError: As :meth:`start`.
            StorageError: As :meth:`start`.
        """
        event = request_event("score", ticket, use)
        with self._trail.refusals(event):
            chosen = self._choices(ticket, records, use)
            used = [used_of(ticket, choices) for choices in chosen]
            found = self._machine.score(ticket, records, chosen, self._machine.routing(use))
        everything = {one.digest: one for some in used for one in some}
        self._trail.append(
            {
                **event,
                "decision": "allow",
                "adapters": sorted(everything),
                "labels": list(labels_of(tuple(everything.values()))),
                "number": len(records),
                "tokens": sum(one.tokens for one in found.records),
            }
        )
        return Scores(
            perplexity=found.perplexity,
            accuracy=found.accuracy,
            records=tuple(
                ScoredRecord(loss=one.loss, tokens=one.tokens, used=some, correct=one.correct)
                for one, some in zip(found.records, used, strict=True)
            ),
        )

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """The base's own view of texts: mean hidden states, no adapter, each text by itself.

        Args:
            texts: The texts.

        Returns:
            Shape (n, width), float32, rows of length 1.
        """
        return self._machine.encoders.encode_all(texts)

    @property
    def embedded_tokens(self) -> int:
        """How many tokens of a text :meth:`embed` reads."""
        return self._machine.encoders.base.max_tokens

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt as the model reads it; raises as :meth:`Prompts.tokens`."""
        return len(self._prompts.tokens(prompt))

    def close(self) -> None:
        """End every answer, write its entry, and leave the base as it was; again does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._machine.end_answers()
                self._trail.close()
                self._machine.close()

    def _choices(
        self, ticket: Ticket, records: Sequence[Record], use: Use
    ) -> list[tuple[Choice, ...]]:
        if use.kind is UseKind.AUTO:
            return [self.choose(ticket, record.text, use) for record in records]
        return [self.choose(ticket, "", use)] * len(records)


@contextlib.contextmanager
def open_service(
    home: Home,
    *,
    base: str | None = None,
    settings: ServiceSettings | None = None,
    principal: str = "",
    purpose: str = "",
) -> Iterator[AnsweringService]:
    """Open the service of a home.

    Args:
        home: The home.
        base: The base's folder or hub identifier. None takes the one base of the home's groups;
            where a principal is named and may use groups of one base, that one.
        settings: How it serves.
        principal: Whom it is opened for, where it is for one alone.
        purpose: What for.

    Yields:
        The service; closed when the block ends.

    Raises:
        AccessError: If a principal is named who is not known.
        InputError: If the base is not found, or there are several and none is named.
        StorageError: If the home cannot be read or written.
    """
    settings = settings or ServiceSettings()
    with open_database(home.database_url) as database:
        store, log = ContentStore(home.store_url), AuditLog(database)
        granted = _granted(database, log, principal, purpose) if principal else frozenset()
        groups = Groups(database, store).list()
        chosen = choose_base(groups, base=base, classes=settings.classes, granted=granted)
        authorizer = Authorizer(database, open_mint(home), lifetime_seconds=settings.ticket_seconds)
        signing = SigningKey.open(home.path / "keys")
        machine = Machine(chosen, database, store, signing, authorizer, settings)
        service = AnsweringService(database, machine, authorizer)
        try:
            yield service
        finally:
            service.close()


def _granted(database: Database, log: AuditLog, principal: str, purpose: str) -> frozenset[str]:
    """Digests of what a principal may use; whoever is not known is told so before work is done."""
    found = Judge(database).judge(principal, purpose, datetime.now(UTC))
    if not found.known:
        log.append({**_caller_event(principal, purpose), "decision": "refuse"})
        raise refused("principal", principal)
    return frozenset(facts.digest for facts in found.granted)


def _caller_event(principal: str, purpose: str, credential: str = "") -> dict[str, str]:
    return {
        "action": "authorize",
        "principal": shown(principal),
        "purpose": shown(purpose),
        "credential": shown(credential),
    }
