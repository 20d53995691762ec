"""``intarsia policy``: set the policies, see who may use what and why, test a change first."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.output import facts, present, short_digest, table
from intarsia_platform.cli.registry import OpenRegistry, open_registry
from intarsia_platform.cli.settings import IntarsiaCommand, command_group, settings_of

if TYPE_CHECKING:
    from intarsia_platform.access.decisions import Decision
    from intarsia_platform.access.expectations import ExpectationFile, Outcome
    from intarsia_platform.access.facts import AdapterFacts
    from intarsia_platform.access.judgement import Judgement
    from intarsia_platform.access.policy_set import PolicySet

app = command_group()

EXPECTATION_FAILED = 7
"""The exit code of ``policy test`` where a decision is not what was expected."""

Principal = Annotated[str, typer.Argument(metavar="PRINCIPAL")]
Purpose = Annotated[
    str, typer.Option(metavar="WORD", help="What for, as policies may ask; empty by default.")
]


@app.command("set", cls=IntarsiaCommand, help="Put policies and users in force, from files.")
def set_command(
    context: typer.Context,
    policies: Annotated[Path, typer.Option(metavar="FILE", help="Cedar policies.")],
    entities: Annotated[Path, typer.Option(metavar="FILE", help="Users, in Cedar's JSON.")],
) -> None:
    """Put policies and users in force.

    Args:
        context: The command's context.
        policies: The file of policies.
        entities: The file of users.
    """
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.registry.epoch import read_epoch

    settings = settings_of(context)
    texts = (_policies_text(policies), _entities_text(entities))
    with open_registry(settings.open_home(create=True)) as registry:
        found = PolicyStore(registry.database).set(*texts)
        with registry.database.read() as connection:
            epoch = read_epoch(connection)
    mapping = {
        "policy_version": found.version,
        "policies": len(found.statements),
        "users": len(found.users),
        "epoch": epoch,
    }
    present(settings, mapping, facts(_words(mapping)))


@app.command("check", cls=IntarsiaCommand, help="Show what a principal may use now.")
def check_command(context: typer.Context, principal: Principal, purpose: Purpose = "") -> None:
    """Show what a principal may use.

    Args:
        context: The command's context.
        principal: Who.
        purpose: What for.
    """
    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        judgement = judge(registry, principal, purpose)
    names = {one.digest: one.name for one in judgement.granted}
    pairs = sorted(sorted(names[digest] for digest in pair) for pair in judgement.apart)
    mapping = {
        "principal": principal,
        "purpose": purpose,
        "policy_version": judgement.policy_version,
        "epoch": judgement.epoch,
        "adapters": [_adapter_mapping(one) for one in judgement.granted],
        "apart": pairs,
    }
    rows = [
        (one.name, short_digest(one.digest), ", ".join(one.labels) or None, one.level)
        for one in sorted(judgement.granted, key=lambda one: one.name)
    ]
    shown = {name: mapping[name] for name in ("principal", "purpose", "policy_version", "epoch")}
    parts: list[Any] = [facts(_words(shown)), ""]
    if rows:
        parts.append(table(["adapter", "digest", "labels", "level"], rows, right="level"))
    else:
        parts.append("no adapter; only the base answers")
    parts += [f"never in one answer: {first} and {second}" for first, second in pairs]
    present(settings, mapping, *parts)


@app.command(
    "explain", cls=IntarsiaCommand, help="Show why a principal may or may not use an adapter."
)
def explain_command(
    context: typer.Context,
    principal: Principal,
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER")],
    purpose: Purpose = "",
) -> None:
    """Show why a principal may or may not use an adapter.

    Args:
        context: The command's context.
        principal: Who.
        adapter: Its name, its digest or the beginning of the digest.
        purpose: What for.
    """
    from intarsia_platform.access.decisions import decide
    from intarsia_platform.access.facts import AdapterFactsReader
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.access.refusal import refused

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        policies = PolicyStore(registry.database).current()
        if policies is not None and not policies.knows(principal):
            raise refused("principal", principal)
        try:
            digest = registry.adapters.get(adapter).digest
        except InputError:
            raise refused("adapter", adapter) from None
        found = AdapterFactsReader(registry.database).of(digest)
        if found is None:
            raise refused("adapter", adapter)
    (decision,) = decide(policies, principal, [found], purpose)
    mapping = {
        "principal": principal,
        "adapter": found.name,
        "digest": found.digest,
        "purpose": purpose,
        **_decision_mapping(decision),
        "policy_version": "" if policies is None else policies.version,
        "user": _user_mapping(policies, principal),
        "facts": _adapter_mapping(found),
    }
    present(settings, mapping, facts(_words(_explained(mapping, decision, policies))))


@app.command(
    "test",
    cls=IntarsiaCommand,
    help="Compare decisions with expected ones. FILE holds these; it may bring policies, users and "
    f"adapters that are not live yet. Ends with {EXPECTATION_FAILED} where one differs.",
)
def test_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE")],
) -> None:
    """Compare decisions with expected ones.

    Args:
        context: The command's context.
        path: The file of expectations.
    """
    from intarsia_platform.access.expectations import judge_expectations, read_expectations
    from intarsia_platform.access.facts import AdapterFactsReader

    settings = settings_of(context)
    file = read_expectations(path)
    with open_registry(settings.open_home()) as registry:
        policies = _policies_to_test(file, registry)
        registered = AdapterFactsReader(registry.database).all()
    outcomes = judge_expectations(file, policies, registered, datetime.now(UTC))
    failed = sum(not outcome.held for outcome in outcomes)
    mapping = {
        "policy_version": "" if policies is None else policies.version,
        "tests": [_outcome_mapping(outcome) for outcome in outcomes],
        "failed": failed,
    }
    rows = [_outcome_row(number, outcome) for number, outcome in enumerate(outcomes, start=1)]
    headings = ["test", "principal", "adapters", "purpose", "expected", "decision", "by"]
    summary = f"{len(outcomes) - failed} of {len(outcomes)} as expected"
    present(settings, mapping, table(headings, rows, right="test"), "", summary)
    if failed:
        raise typer.Exit(EXPECTATION_FAILED)


def judge(registry: OpenRegistry, principal: str, purpose: str = "") -> Judgement:
    """What a principal may use now, for the owner of the home to look at.

    Args:
        registry: The open registry.
        principal: Who.
        purpose: What for.

    Returns:
        What it may use.

    Raises:
        AccessError: If the principal is not known.
        InputError: If the purpose is not a word.
    """
    from intarsia_platform.access.judgement import Judge
    from intarsia_platform.access.refusal import refused

    found = Judge(registry.database).judge(principal, purpose, datetime.now(UTC))
    if not found.known:
        raise refused("principal", principal)
    return found


def _policies_text(path: Path) -> str:
    from intarsia_platform.access.expectations import read_text
    from intarsia_platform.access.policy_set import MAX_POLICIES_BYTES

    return read_text(path, "policies", MAX_POLICIES_BYTES)


def _entities_text(path: Path) -> str:
    from intarsia_platform.access.expectations import read_text
    from intarsia_platform.access.policy_set import MAX_ENTITIES_BYTES

    return read_text(path, "entities", MAX_ENTITIES_BYTES)


def _policies_to_test(file: ExpectationFile, registry: OpenRegistry) -> PolicySet | None:
    """Those in force, with what the file brings in their place."""
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.access.policy_set import PolicySet

    current = PolicyStore(registry.database).current()
    if file.policies is None and file.entities is None:
        return current
    policies = current.policies if current else ""
    entities = current.entities if current else "[]"
    return PolicySet(
        policies if file.policies is None else _policies_text(file.policies),
        entities if file.entities is None else _entities_text(file.entities),
    )


def _words(mapping: dict[str, Any]) -> dict[str, object]:
    return {
        name.replace("_", " "): None if value == "" else value for name, value in mapping.items()
    }


def _adapter_mapping(one: AdapterFacts) -> dict[str, Any]:
    return {
        "name": one.name,
        "digest": one.digest,
        "labels": list(one.labels),
        "owner": one.owner,
        "tenant": one.tenant,
        "level": one.level,
        "expires_at": None if one.expires_at is None else one.expires_at.isoformat(),
    }


def _user_mapping(policies: PolicySet | None, principal: str) -> dict[str, Any] | None:
    for user in () if policies is None else policies.users:
        if user.name == principal:
            groups = sorted(user.groups)
            return {"groups": groups, "clearance": user.clearance, "tenant": user.tenant}
    return None


def _decision_mapping(decision: Decision) -> dict[str, Any]:
    return {
        "decision": "allow" if decision.allowed else "deny",
        "reasons": list(decision.reasons),
        "errors": list(decision.errors),
        "expired": decision.expired,
    }


def _because(decision: Decision) -> str:
    if decision.expired:
        return "the adapter has expired"
    if decision.errors:
        return f"a policy could not be evaluated: {'; '.join(decision.errors)}"
    return ", ".join(decision.reasons) or "no policy permits it"


def _explained(
    mapping: dict[str, Any], decision: Decision, policies: PolicySet | None
) -> dict[str, Any]:
    user, adapter = mapping["user"] or {}, mapping["facts"]
    return {
        "decision": mapping["decision"],
        "because": "no policies are set" if policies is None else _because(decision),
        "policies that decided": ", ".join(decision.reasons),
        "principal": mapping["principal"],
        "groups": ", ".join(user.get("groups", [])),
        "clearance": user.get("clearance", ""),
        "tenant": user.get("tenant", ""),
        "purpose": mapping["purpose"],
        "adapter": adapter["name"],
        "digest": adapter["digest"],
        "labels": ", ".join(adapter["labels"]),
        "level": adapter["level"],
        "adapter's tenant": adapter["tenant"],
        "owner": adapter["owner"],
        "expires": adapter["expires_at"],
    }


def _outcome_mapping(outcome: Outcome) -> dict[str, Any]:
    expected = outcome.expectation
    return {
        "principal": expected.principal,
        "adapters": list(expected.adapters),
        "purpose": expected.purpose,
        "expected": "allow" if expected.allowed else "deny",
        "decision": "allow" if outcome.allowed else "deny",
        "reasons": sorted({one for decision in outcome.decisions for one in decision.reasons}),
        "errors": sorted({one for decision in outcome.decisions for one in decision.errors}),
        "held": outcome.held,
    }


def _outcome_row(number: int, outcome: Outcome) -> tuple[object, ...]:
    mapping = _outcome_mapping(outcome)
    return (
        number,
        mapping["principal"],
        " + ".join(mapping["adapters"]),
        mapping["purpose"] or None,
        mapping["expected"],
        mapping["decision"] if outcome.held else f"{mapping['decision']}, DIFFERS",
        ", ".join((*mapping["reasons"], *mapping["errors"])) or None,
    )
