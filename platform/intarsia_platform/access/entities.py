"""The users that a Cedar entities file brings.

Cedar's own errors do not name the entity; these do. What passes is written anew for Cedar, so that
the two can never read one text differently.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from intarsia_client.errors import InputError, IntarsiaError

from intarsia_platform.access.refusal import shown
from intarsia_platform.access.schema import LONG_LIMIT, USER

MAX_USERS = 100_000
MAX_GROUPS = 1_000
MAX_WORD = 255


@dataclass(frozen=True, kw_only=True)
class User:
    """One principal.

    Args:
        name: Its identifier in ``User::"…"``.
        groups: The groups it is in.
        clearance: How much it may see; what that means is the policies' affair.
        tenant: Whose it is.
    """

    name: str
    groups: frozenset[str] = frozenset()
    clearance: int = 0
    tenant: str = ""

    def as_entity(self) -> dict[str, Any]:
        """The user in Cedar's JSON."""
        attributes = {
            "groups": sorted(self.groups),
            "clearance": self.clearance,
            "tenant": self.tenant,
        }
        return {"uid": {"type": USER, "id": self.name}, "attrs": attributes, "parents": []}


def read_users(text: str) -> tuple[User, ...]:
    """Read a Cedar entities file.

    Args:
        text: A JSON list of entities of type ``User``. An attribute that is left out is the least
            there is: no groups, clearance 0, tenant ``""``.

    Returns:
        The users, in order of their names.

    Raises:
        InputError: If it is not such a list; the line names the entity.
    """
    try:
        entities = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nests too deeply" if isinstance(error, RecursionError) else error
        raise InputError("entities", f"not JSON ({reason})", "write a JSON list") from None
    if not isinstance(entities, list):
        raise InputError("entities", "not a list", "write a JSON list of Cedar entities")
    if len(entities) > MAX_USERS:
        raise InputError("entities", len(entities), f"at most {MAX_USERS} are held")
    users: dict[str, User] = {}
    for number, entity in enumerate(entities, start=1):
        user = _user(entity, number)
        if user.name in users:
            raise _fault(user.name, "is there twice", "leave one")
        users[user.name] = user
    return tuple(users[name] for name in sorted(users))


def is_word(value: object, *, empty: bool = False) -> bool:
    """Whether a value can be an identifier, a label, a group or a tenant.

    Args:
        value: Anything.
        empty: Whether nothing counts too.

    Returns:
        Whether it is printable text of at most 255 characters.
    """
    return (
        isinstance(value, str)
        and len(value) <= MAX_WORD
        and (value.isprintable() if value else empty)
    )


def _fault(name: object, value: object, remedy: str) -> IntarsiaError:
    where = f'{USER}::"{shown(name)}"' if isinstance(name, str) else f"number {name}"
    return InputError(f"entities, {where}", value, remedy)


def _user(entity: object, number: int) -> User:
    if not isinstance(entity, dict):
        raise _fault(number, "is no entity", 'write {"uid": …, "attrs": …, "parents": []}')
    uid = entity.get("uid")
    if isinstance(uid, dict) and set(uid) == {"__entity"}:
        uid = uid["__entity"]
    if not isinstance(uid, dict) or set(uid) != {"type", "id"} or not is_word(uid["id"]):
        raise _fault(number, "has no uid", 'write "uid": {"type": "User", "id": "…"}')
    name = uid["id"]
    if uid["type"] != USER:
        raise _fault(
            number,
            f"is of type {shown(str(uid['type']))}",
            f"bring entities of type {USER} only; adapters come from the registry",
        )
    _check_keys(name, entity, {"uid", "attrs", "parents"}, "field")
    if entity.get("parents", []) != []:
        raise _fault(name, "has parents", "name its groups in attrs.groups, and leave parents []")
    attributes = entity.get("attrs", {})
    if not isinstance(attributes, dict):
        raise _fault(name, "attrs are no object", 'write "attrs": {"groups": […], …}')
    _check_keys(name, attributes, {"groups", "clearance", "tenant"}, "attribute")
    return _with_attributes(name, attributes)


def _with_attributes(name: str, attributes: dict[str, Any]) -> User:
    groups = attributes.get("groups", [])
    if not isinstance(groups, list) or not all(is_word(group) for group in groups):
        raise _fault(name, "attribute groups is no list of words", 'write "groups": ["…"]')
    if len(groups) > MAX_GROUPS:
        raise _fault(name, f"is in {len(groups)} groups", f"name at most {MAX_GROUPS}")
    clearance = attributes.get("clearance", 0)
    if type(clearance) is not int or not -LONG_LIMIT <= clearance < LONG_LIMIT:
        raise _fault(name, "attribute clearance is no whole number", 'write "clearance": 0')
    tenant = attributes.get("tenant", "")
    if not is_word(tenant, empty=True):
        raise _fault(name, "attribute tenant is no word", 'write "tenant": "…"')
    return User(name=name, groups=frozenset(groups), clearance=clearance, tenant=tenant)


def _check_keys(name: str, found: dict[str, Any], known: set[str], kind: str) -> None:
    strange = sorted(set(found) - known)
    if strange:
        raise _fault(
            name, f"has the {kind} {shown(strange[0])}", f"known are {', '.join(sorted(known))}"
        )
