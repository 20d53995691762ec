"""Expected decisions, kept in a file: what a steward tests a change of policies with.

The file may bring policies and users that are not in force yet, and adapters that are not
registered yet; what it does not bring is taken from the registry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError

from intarsia_platform.access.decisions import Decision, decide, decide_together
from intarsia_platform.access.entities import is_word
from intarsia_platform.access.facts import AdapterFacts
from intarsia_platform.access.policy_set import PolicySet
from intarsia_platform.access.refusal import shown
from intarsia_platform.access.schema import LONG_LIMIT

MAX_FILE_BYTES = 16 << 20

_OUTCOMES = {"allow": True, "deny": False}


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One expected decision.

    Args:
        principal: Who asks; one that is not known is denied.
        adapters: Names or digests; more than one is a composition.
        purpose: What for.
        allowed: What is expected.
    """

    principal: str
    adapters: tuple[str, ...]
    purpose: str
    allowed: bool


@dataclass(frozen=True, kw_only=True)
class ExpectationFile:
    """What such a file holds.

    Args:
        policies: The file of policies to judge by, None for those in force.
        entities: The file of users to judge by, None for those in force.
        adapters: Adapters to judge beside, or instead of, the registered ones of their names.
        tests: The expected decisions.
    """

    policies: Path | None
    entities: Path | None
    adapters: tuple[AdapterFacts, ...]
    tests: tuple[Expectation, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one expectation.

    Args:
        expectation: What was expected.
        decisions: One an adapter.
    """

    expectation: Expectation
    decisions: tuple[Decision, ...]

    @property
    def allowed(self) -> bool:
        """Whether all of it is allowed."""
        return all(decision.allowed for decision in self.decisions)

    @property
    def held(self) -> bool:
        """Whether it is what was expected."""
        return self.allowed == self.expectation.allowed


def read_text(path: Path, what: str, limit: int = MAX_FILE_BYTES) -> str:
    """Read a text file of a steward.

    Args:
        path: The file.
        what: What a person calls it.
        limit: The most bytes to read.

    Returns:
        Its text.

    Raises:
        InputError: If it cannot be read, is too large or not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InputError(what, f"{path} ({error.strerror})", "name a file to read") from None
    if len(data) > limit:
        raise InputError(what, f"{path} is too large", f"at most {limit} bytes are read")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(what, f"{path} is no text", "write it in UTF-8") from None


def read_expectations(path: Path) -> ExpectationFile:
    """Read a file of expected decisions.

    Args:
        path: JSON: ``tests``, and where wanted ``policies``, ``entities`` (paths from its folder)
            and ``adapters``.

    Returns:
        What it holds.

    Raises:
        InputError: If it is not such a file; the line names the place.
    """
    try:
        document = json.loads(read_text(path, "test file"))
    except (ValueError, RecursionError) as error:
        raise InputError("test file", f"{path}: {shown(str(error))}", "write JSON") from None
    fields = {"policies", "entities", "adapters", "tests"}
    document = _mapping(document, f"test file {path}", fields, required=("tests",))
    places = {name: document.get(name) for name in ("policies", "entities")}
    for name, place in places.items():
        if place is not None and not isinstance(place, str):
            raise InputError(f"test file, {name}", "is no path", "name a file")
    files = {name: None if one is None else path.parent / one for name, one in places.items()}
    return ExpectationFile(
        policies=files["policies"],
        entities=files["entities"],
        adapters=tuple(_facts(*one) for one in _numbered(document.get("adapters", []), "adapters")),
        tests=tuple(_expectation(*one) for one in _numbered(document["tests"], "tests")),
    )


def judge_expectations(
    file: ExpectationFile,
    policies: PolicySet | None,
    registered: Sequence[AdapterFacts],
    now: datetime,
) -> tuple[Outcome, ...]:
    """Decide what a file expects.

    Args:
        file: The file.
        policies: The policies to judge by.
        registered: The registry's adapters.
        now: The time, aware.

    Returns:
        One outcome a test, in their order.

    Raises:
        InputError: If a test names an adapter that there is not.
    """
    known = {facts.name: facts for facts in (*registered, *file.adapters)}
    known |= {facts.digest: facts for facts in registered if known[facts.name] is facts}
    outcomes = []
    for number, test in enumerate(file.tests, start=1):
        missing = [name for name in test.adapters if name not in known]
        if missing:
            raise InputError(
                f"test {number}",
                f"there is no adapter {shown(missing[0])}",
                "see `intarsia adapters list`, or describe it under adapters",
            )
        facts = list(dict.fromkeys(known[name] for name in test.adapters))
        decisions = decide(policies, test.principal, facts, test.purpose, now=now)
        if len(facts) > 1:
            decisions += decide_together(policies, test.principal, facts, test.purpose, now=now)
        outcomes.append(Outcome(expectation=test, decisions=tuple(decisions)))
    return tuple(outcomes)


def _mapping(
    value: object, where: str, fields: set[str], required: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(where, "is no JSON object", f"write {{{', '.join(sorted(fields))}}}")
    for name in required:
        if name not in value:
            raise InputError(where, f"has no {name}", "add it")
    strange = sorted(set(value) - fields)
    if strange:
        raise InputError(
            where, f"has the field {shown(strange[0])}", f"known are {', '.join(sorted(fields))}"
        )
    return value


def _numbered(value: object, name: str) -> list[tuple[object, str]]:
    if not isinstance(value, list):
        raise InputError(f"test file, {name}", "is no list", "write a JSON list")
    return [(entry, f"{name}, number {place}") for place, entry in enumerate(value, start=1)]


def _word(value: object, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not is_word(value, empty=empty):
        raise InputError(where, "is no word", "write up to 255 printable characters")
    return value


def _expectation(value: object, where: str) -> Expectation:
    fields = {"principal", "adapter", "together", "purpose", "decision"}
    entry = _mapping(value, where, fields, required=("principal", "decision"))
    if ("adapter" in entry) == ("together" in entry):
        raise InputError(where, "names no adapter, or both", "write adapter or together")
    named = entry["together"] if "together" in entry else [entry["adapter"]]
    if not isinstance(named, list) or not named:
        raise InputError(where, "together is no list of names", 'write "together": ["…", "…"]')
    if entry["decision"] not in _OUTCOMES:
        raise InputError(
            where, f"decision is {shown(str(entry['decision']))}", 'write "allow" or "deny"'
        )
    return Expectation(
        principal=_word(entry["principal"], f"{where}, principal"),
        adapters=tuple(_word(name, f"{where}, adapter") for name in named),
        purpose=_word(entry.get("purpose", ""), f"{where}, purpose", empty=True),
        allowed=_OUTCOMES[entry["decision"]],
    )


def _facts(value: object, where: str) -> AdapterFacts:
    fields = {"name", "labels", "owner", "tenant", "level"}
    entry = _mapping(value, where, fields, required=("name",))
    labels, level = entry.get("labels", []), entry.get("level", 0)
    if not isinstance(labels, list):
        raise InputError(f"{where}, labels", "is no list", "write a JSON list of words")
    if type(level) is not int or not -LONG_LIMIT <= level < LONG_LIMIT:
        raise InputError(f"{where}, level", "is no whole number", "write 0 or more")
    name = _word(entry["name"], f"{where}, name")
    return AdapterFacts(
        digest=name,
        name=name,
        labels=tuple(sorted({_word(label, f"{where}, labels") for label in labels})),
        owner=_word(entry.get("owner", ""), f"{where}, owner", empty=True),
        tenant=_word(entry.get("tenant", ""), f"{where}, tenant", empty=True),
        level=level,
    )
