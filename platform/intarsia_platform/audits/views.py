"""Everything that one caller gets of a service: what an audit looks at, and nothing from inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from intarsia_client.errors import AccessError, InputError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.records import Record
from numpy.typing import NDArray

from intarsia_platform.answering.answers import ScoredRecord
from intarsia_platform.answering.service import AnsweringService
from intarsia_platform.answering.use import UseKind, parse_use
from intarsia_platform.serving.sampling import Sampling

AUTO, BASE = str(UseKind.AUTO), str(UseKind.BASE)

_Given = TypeVar("_Given")


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Texts by which a group is told from what it does not know.

    Args:
        group: The group's name.
        members: Records that its adapter was trained on.
        others: Records of the same kind that it was not trained on; which ones should have been
            drawn at random.
    """

    group: str
    members: Sequence[Record]
    others: Sequence[Record]

    @property
    def records(self) -> tuple[Record, ...]:
        """All of them, members first."""
        return (*self.members, *self.others)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How one caller's answers predict an exam's records.

    Args:
        records: One score a record, members first; none where the caller was refused.
        refused: The words of a refusal; empty where there was none.
    """

    records: tuple[ScoredRecord, ...] = ()
    refused: str = ""

    @property
    def losses(self) -> NDArray[np.float64]:
        """Mean negative log-likelihood of each record, in nats per token."""
        return np.array([one.loss for one in self.records], dtype=np.float64)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Predicted tokens of each record."""
        return np.array([one.tokens for one in self.records], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What one caller gets.

    Args:
        principal: The caller.
        models: What it may ask for.
        scores: By group and then by use (``auto``, ``base`` and the group's name).
        answers: By what was asked: text and used adapters, or the words of a refusal.
    """

    principal: str
    models: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Scored]]
    answers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the caller got, every number to its last bit."""
        return bytes_digest(canonical_json(self._told()))

    def _told(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "answers": dict(self.answers),
            "scores": {
                group: {use: _as_told(scored) for use, scored in by_use.items()}
                for group, by_use in self.scores.items()
            },
        }


def take_view(
    service: AnsweringService,
    principal: str,
    exams: Sequence[Exam],
    *,
    prompts: Sequence[str] = (),
    samplings: Sequence[Sampling] = (Sampling(max_tokens=16),),
) -> View:
    """Ask a service everything that an audit needs, as one caller.

    Each exam is scored with ``auto``, ``base`` and the group's own name; each prompt is answered
    with ``auto`` and with each group's name. A refusal is a result.

    Args:
        service: The service; greedy or seeded answers are the same whenever they are asked for.
        principal: Whom to ask as.
        exams: The groups, whether the caller may use them or not, and whether they exist or not.
        prompts: Texts to go on from.
        samplings: How to, each.

    Returns:
        The view.

    Raises:
        AccessError: If the principal is not known.
        InputError: If the base classifies, or a record has no token to predict.
    """
    if service.base.task != "causal-lm":
        raise InputError("audit", service.base.task, "audit groups of a causal language model")
    models = tuple(entry.id for entry in service.models(service.authorize(principal)))
    scores = {
        exam.group: {
            use: _scored(service, principal, exam, use) for use in (AUTO, BASE, exam.group)
        }
        for exam in exams
    }
    answers = {}
    for number, sampling in enumerate(samplings):
        for prompt in prompts:
            for use in (AUTO, *(exam.group for exam in exams)):
                asked = f"{number} {use} {prompt}"
                answers[asked] = _answered(service, principal, prompt, use, sampling)
    return View(principal=principal, models=models, scores=scores, answers=answers)


def _scored(service: AnsweringService, principal: str, exam: Exam, use: str) -> Scored:
    def ask() -> Scored:
        ticket = service.authorize(principal)
        found = service.score(ticket, exam.records, parse_use(use))
        return Scored(records=found.records)

    return _or_refused(ask, lambda words: Scored(refused=words))


def _answered(
    service: AnsweringService, principal: str, prompt: str, use: str, sampling: Sampling
) -> Any:
    def ask() -> Any:
        ticket = service.authorize(principal)
        found = service.answer(ticket, prompt, parse_use(use), sampling)
        return {**found.as_mapping(), "finish": str(found.finish)}

    return _or_refused(ask, lambda words: words)


def _or_refused(ask: Callable[[], _Given], refusal: Callable[[str], _Given]) -> _Given:
    try:
        return ask()
    except AccessError as error:
        return refusal(str(error))


def _as_told(scored: Scored) -> Any:
    if scored.refused:
        return scored.refused
    return [
        [one.loss, one.tokens, [used.as_mapping() for used in one.used]] for one in scored.records
    ]
