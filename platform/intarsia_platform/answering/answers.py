"""What answering hands out: plain frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intarsia_client.errors import IntarsiaError

from intarsia_platform.access.ticket import Ticket
from intarsia_platform.serving.grants import Weighted
from intarsia_platform.serving.streams import Finish, Stream


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """Something that a caller may ask for.

    Args:
        id: ``"auto"``, ``"base"`` or an adapter's name.
        labels: The adapter's labels, sorted; none for ``auto`` and ``base``.
    """

    id: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Used:
    """One adapter that an answer draws on.

    Args:
        digest: Its digest.
        name: Its name when the ticket was issued.
        weight: Its weight; a multiple of 1/16 where retrieval chose it.
        labels: Its labels, sorted.
    """

    digest: str
    name: str
    weight: float
    labels: tuple[str, ...] = ()

    def as_mapping(self) -> dict[str, Any]:
        """As ``--json`` and the gateway show it."""
        return {"adapter": self.digest, "name": self.name, "weight": self.weight}


@dataclass(frozen=True, kw_only=True, eq=False)
class Started:
    """An answer on its way.

    Args:
        stream: Its events; the last one comes when the audit log has its entry.
        used: What it draws on, ordered by digest; none where the base answers alone.
        labels: Union of their labels, sorted.
        prompt_tokens: Tokens of the prompt as the model reads it.
    """

    stream: Stream
    used: tuple[Used, ...]
    labels: tuple[str, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A whole answer.

    Args:
        text: Its text.
        used: What it draws on, ordered by digest.
        labels: Union of their labels, sorted.
        tokens: How many tokens the model chose, an end token included.
        finish: Why it ended.
        prompt_tokens: Tokens of the prompt as the model reads it.
    """

    text: str
    used: tuple[Used, ...]
    labels: tuple[str, ...]
    tokens: int
    finish: Finish
    prompt_tokens: int

    def as_mapping(self) -> dict[str, Any]:
        """As ``intarsia ask --json`` writes it."""
        return {
            "text": self.text,
            "used": [one.as_mapping() for one in self.used],
            "labels": list(self.labels),
            "tokens": self.tokens,
        }


@dataclass(frozen=True, kw_only=True)
class ScoredRecord:
    """How well one record is predicted.

    Args:
        loss: Negative log-likelihood in nats: the mean over its predicted tokens for a causal
            language model; of its class for a classifier.
        tokens: How many tokens were predicted; 0 for a classifier.
        used: The adapters that predicted it, ordered by digest.
        correct: Whether its class was the likeliest; None for a causal language model.
    """

    loss: float
    tokens: int
    used: tuple[Used, ...]
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well records are predicted.

    Args:
        perplexity: ``exp`` of the mean loss over all predicted tokens; None for a classifier.
        accuracy: Share of records whose class was the likeliest; None for a causal language model.
        records: One a record, in order.
    """

    perplexity: float | None
    accuracy: float | None
    records: tuple[ScoredRecord, ...]

    def as_mapping(self) -> Mapping[str, Any]:
        """As ``intarsia score --json`` writes it."""
        return {
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "records": [
                {
                    "loss": one.loss,
                    "tokens": one.tokens,
                    "used": [used.as_mapping() for used in one.used],
                }
                for one in self.records
            ],
        }


def used_of(ticket: Ticket, choices: Sequence[Weighted]) -> tuple[Used, ...]:
    """What an answer says of its adapters.

    Args:
        ticket: The caller's ticket.
        choices: The adapters and their weights.

    Returns:
        One a choice, ordered by digest.

    Raises:
        AccessError: If the ticket does not grant one.
    """
    found = []
    for choice in sorted(choices, key=lambda one: one.digest):
        granted = ticket.adapter(choice.digest)
        found.append(
            Used(
                digest=granted.digest,
                name=granted.name,
                weight=choice.weight,
                labels=granted.labels,
            )
        )
    return tuple(found)


def labels_of(used: Sequence[Used]) -> tuple[str, ...]:
    """The labels of whatever draws on some adapters.

    Args:
        used: The adapters.

    Returns:
        The union of their labels, sorted.
    """
    return tuple(sorted({label for one in used for label in one.labels}))


def collect(started: Started, show: Callable[[str], None] | None = None) -> Answered:
    """Wait for an answer's end.

    Args:
        started: The answer on its way.
        show: Called with each piece of its text as it comes.

    Returns:
        The answer; one that was revoked or cancelled is as far as it came.

    Raises:
        IntarsiaError: If it could not be computed, or its entry not be written.
    """
    text, tokens = [], 0
    # Left early, as by Ctrl-C, it is cancelled.
    with started.stream as stream:
        for event in stream:
            tokens += event.token is not None
            text.append(event.text)
            if show is not None and event.text:
                show(event.text)
    finish = stream.finish or Finish.FAILED
    if finish is Finish.FAILED:
        raise failure_of(stream)
    return Answered(
        text="".join(text),
        used=started.used,
        labels=started.labels,
        tokens=tokens,
        finish=finish,
        prompt_tokens=started.prompt_tokens,
    )


def failure_of(stream: Stream) -> IntarsiaError:
    """What a caller may be told of a stream that failed.

    Args:
        stream: The stream.

    Returns:
        The error, to be raised; the words of one that is not ours stay inside.
    """
    if isinstance(stream.error, IntarsiaError):
        return stream.error
    failed = IntarsiaError("answer", "could not be computed", "try again, or tell its steward")
    failed.__cause__ = stream.error
    return failed
