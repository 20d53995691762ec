"""Decisions: whether a principal may use adapters, alone and composed.

Default deny, forbid overrides, and a policy that cannot be evaluated denies: Cedar itself skips
such a policy, which would let a faulty ``forbid`` pass.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import cedarpy
from intarsia_client.errors import InputError

from intarsia_platform.access.entities import is_word
from intarsia_platform.access.facts import AdapterFacts
from intarsia_platform.access.policy_set import PolicySet
from intarsia_platform.access.refusal import shown
from intarsia_platform.access.schema import ACTION, ADAPTER, USER

# No user can have this name; who is not known is judged under it, for the same work.
_NOBODY = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the policies say of one adapter.

    Args:
        allowed: Whether it may be used.
        reasons: The policies that decided, by their ``@id`` or number, with their lines; none
            where nothing permits.
        errors: What went wrong while policies were evaluated; any of it denies.
        expired: Whether its time is over, whatever the policies say.
    """

    allowed: bool
    reasons: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    expired: bool = False


@dataclass(frozen=True, kw_only=True)
class _Question:
    adapter: AdapterFacts
    labels: frozenset[str]
    mixing: bool


def decide(
    policies: PolicySet | None,
    principal: str,
    adapters: Sequence[AdapterFacts],
    purpose: str = "",
    *,
    now: datetime | None = None,
) -> list[Decision]:
    """Whether a principal may use each of some adapters alone.

    Formal guarantee: each decision is a function of the policies, the principal, the purpose and
    the facts of that one adapter; the other adapters do not enter it.

    Args:
        policies: The policies; None denies everything.
        principal: Who asks; one that the entities do not bring is denied everything.
        adapters: The adapters, no two of one name.
        purpose: What for.
        now: The time, aware; None takes the clock's.

    Returns:
        One decision an adapter, in their order.

    Raises:
        InputError: If the purpose is not a word.
    """
    questions = [
        _Question(adapter=adapter, labels=frozenset(adapter.labels), mixing=False)
        for adapter in adapters
    ]
    return _answers(policies, principal, questions, purpose, now)


def decide_together(
    policies: PolicySet | None,
    principal: str,
    adapters: Sequence[AdapterFacts],
    purpose: str = "",
    *,
    now: datetime | None = None,
) -> list[Decision]:
    """Whether a principal may use all of some adapters in one answer.

    Each adapter is judged with the union of all their labels in the context. The composition may
    be made where every decision allows.

    Args:
        policies: As :func:`decide`.
        principal: As :func:`decide`.
        adapters: What is composed.
        purpose: As :func:`decide`.
        now: As :func:`decide`.

    Returns:
        One decision an adapter, in their order.

    Raises:
        InputError: If the purpose is not a word.
    """
    labels = frozenset(label for adapter in adapters for label in adapter.labels)
    questions = [
        _Question(adapter=adapter, labels=labels, mixing=len(adapters) > 1) for adapter in adapters
    ]
    return _answers(policies, principal, questions, purpose, now)


def apart(
    policies: PolicySet | None,
    principal: str,
    adapters: Sequence[AdapterFacts],
    purpose: str = "",
    *,
    now: datetime | None = None,
) -> frozenset[tuple[str, str]]:
    """Pairs of adapters that no answer may mix.

    Args:
        policies: As :func:`decide`.
        principal: As :func:`decide`.
        adapters: Adapters that each may be used alone.
        purpose: As :func:`decide`.
        now: As :func:`decide`.

    Returns:
        Pairs of digests, each pair sorted: those of which :func:`decide_together` denies either.

    Raises:
        InputError: If the purpose is not a word.
    """
    if policies is None or not policies.mixing.matters or len(adapters) < 2:
        return frozenset()
    seen = {adapter.digest: policies.mixing.seen(adapter.labels) for adapter in adapters}
    alike: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for digest, labels in seen.items():
        alike[labels].append(digest)
    questions = [
        _Question(adapter=adapter, labels=union, mixing=True)
        for adapter in adapters
        for union in {
            labels | seen[adapter.digest]
            for labels, digests in alike.items()
            if digests != [adapter.digest]
        }
    ]
    answers = _answers(policies, principal, questions, purpose, now)
    pairs = set()
    for question, answer in zip(questions, answers, strict=True):
        if answer.allowed:
            continue
        digest = question.adapter.digest
        for labels, digests in alike.items():
            if labels | seen[digest] == question.labels:
                pairs |= {(min(digest, b), max(digest, b)) for b in digests if b != digest}
    return frozenset(pairs)


def _answers(
    policies: PolicySet | None,
    principal: str,
    questions: Sequence[_Question],
    purpose: str,
    now: datetime | None,
) -> list[Decision]:
    if not is_word(purpose, empty=True):
        raise InputError("purpose", shown(str(purpose)), "use up to 255 printable characters")
    if policies is None or not questions:
        return [Decision(allowed=False) for _ in questions]
    known = policies.knows(principal)
    moment = now or datetime.now(UTC)
    requests = [
        {
            "principal": {"type": USER, "id": principal if known else _NOBODY},
            "action": ACTION,
            "resource": {"type": ADAPTER, "id": question.adapter.name},
            "context": {
                "purpose": purpose,
                "labels": sorted(question.labels),
                "mixing": question.mixing,
            },
        }
        for question in questions
    ]
    results = cedarpy.is_authorized_batch(
        requests, policies.parsed, _entities(policies, questions), policies.schema
    )
    return [
        _decision(policies, result, known=known, expired=question.adapter.expired(moment))
        for question, result in zip(questions, results, strict=True)
    ]


def _entities(policies: PolicySet, questions: Sequence[_Question]) -> cedarpy.Entities:
    adapters = dict.fromkeys(question.adapter for question in questions)
    added = json.dumps([adapter.as_entity() for adapter in adapters])
    return policies.principals.with_added_json_str(added, policies.schema)


def _decision(
    policies: PolicySet, result: cedarpy.AuthzResult, *, known: bool, expired: bool
) -> Decision:
    if not known:
        return Decision(allowed=False)
    found = result.diagnostics
    errors = tuple(policies.readable(error) for error in found.errors)
    annotations = found.id_annotations_by_reason
    return Decision(
        allowed=result.allowed and not errors and not expired,
        reasons=tuple(policies.place(name, annotations.get(name)) for name in found.reasons),
        errors=errors,
        expired=expired,
    )
