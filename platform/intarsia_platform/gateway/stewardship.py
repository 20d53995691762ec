"""Who may read what, and why, for stewards to look at.

A steward is whoever the entities put into the group ``steward``. What they see are decisions made
now by the policies in force; nothing is changed from here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import AccessError, InputError

from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.decisions import Decision, decide
from intarsia_platform.access.entities import User, is_word
from intarsia_platform.access.facts import AdapterFacts, AdapterFactsReader
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.policy_set import PolicySet
from intarsia_platform.access.refusal import shown
from intarsia_platform.registry.database import Database

STEWARDS = "steward"
"""The group whose members are stewards."""

MAX_USERS = 50
MAX_ADAPTERS = 50


class Stewardship:
    """Shows stewards who may use which adapter; safe to share between threads.

    Args:
        database: The home's database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._policies = PolicyStore(database)
        self._facts = AdapterFactsReader(database)
        self._log = AuditLog(database)

    def is_steward(self, principal: str) -> bool:
        """Whether a principal is one.

        Args:
            principal: Who.

        Returns:
            Whether the entities in force put it into the group of stewards.
        """
        return _is_steward(self._policies.current(), principal)

    def access(
        self, principal: str, *, purpose: str = "", users_from: int = 0, adapters_from: int = 0
    ) -> dict[str, Any]:
        """A part of the table of users by adapters.

        Each look is written to the audit log.

        Args:
            principal: Who looks.
            purpose: What the adapters would be used for.
            users_from: The first user, in order of names.
            adapters_from: The first adapter, in order of names.

        Returns:
            At most :data:`MAX_USERS` users, :data:`MAX_ADAPTERS` adapters, a decision for each two
            of them with the policies that made it, and those policies' texts by their lines.

        Raises:
            AccessError: If the principal is no steward.
            InputError: If the purpose is not a word, or a number is negative.
        """
        policies = self._policies.current()
        if policies is None or not _is_steward(policies, principal):
            raise AccessError(
                "table of access", "is for stewards", f"be named in the group {STEWARDS}"
            )
        if not is_word(purpose, empty=True):
            raise InputError("purpose", shown(purpose), "use up to 255 printable characters")
        if users_from < 0 or adapters_from < 0:
            raise InputError("table of access", "begins below 0", "use whole numbers from 0")
        event = {
            "action": "access-review",
            "principal": principal,
            "purpose": purpose,
            "policy_version": policies.version,
        }
        self._log.append(event)
        everything = sorted(self._facts.all(), key=lambda one: one.name)
        users = policies.users[users_from : users_from + MAX_USERS]
        adapters = everything[adapters_from : adapters_from + MAX_ADAPTERS]
        now = datetime.now(UTC)
        return {
            "policy_version": policies.version,
            "purpose": purpose,
            "users": [_user(user) for user in users],
            "users_from": users_from,
            "users_total": len(policies.users),
            "adapters": [_adapter(one) for one in adapters],
            "adapters_from": adapters_from,
            "adapters_total": len(everything),
            "decisions": [
                [_decision(one) for one in decide(policies, user.name, adapters, purpose, now=now)]
                for user in users
            ],
            "policies": {str(one.line): one.text.strip() for one in policies.statements},
        }


def _is_steward(policies: PolicySet | None, principal: str) -> bool:
    users = () if policies is None else policies.users
    return any(user.name == principal and STEWARDS in user.groups for user in users)


def _user(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "groups": sorted(user.groups),
        "clearance": user.clearance,
        "tenant": user.tenant,
    }


def _adapter(one: AdapterFacts) -> dict[str, Any]:
    return {
        "name": one.name,
        "labels": list(one.labels),
        "owner": one.owner,
        "tenant": one.tenant,
        "level": one.level,
        "expires_at": None if one.expires_at is None else one.expires_at.isoformat(),
    }


def _decision(one: Decision) -> dict[str, Any]:
    return {
        "allowed": one.allowed,
        "reasons": list(one.reasons),
        "errors": list(one.errors),
        "expired": one.expired,
    }
