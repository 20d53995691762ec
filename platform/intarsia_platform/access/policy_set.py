"""Policies and users, parsed and validated: what a decision is made from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cedarpy
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, files_digest

from intarsia_platform.access.context_use import MixingUse, mixing_use
from intarsia_platform.access.entities import User, read_users
from intarsia_platform.access.refusal import shown
from intarsia_platform.access.schema import SCHEMA
from intarsia_platform.access.statements import Statement, split_statements

MAX_POLICIES_BYTES = 1 << 20
MAX_ENTITIES_BYTES = 64 << 20

_PARSER_NAME = re.compile(r"policy(\d+)")


@dataclass(frozen=True)
class PolicySet:
    """Policies and users that passed our schema; immutable, and harmless to share.

    Formal guarantee: an object of this type holds only policies that Cedar's strict validation
    passed, no templates, and only users whose attributes the schema allows.

    Args:
        policies: Cedar policies as they were written.
        entities: The users as they were written, in Cedar's JSON.

    Raises:
        InputError: If either is not valid; the line names the place.
    """

    policies: str
    entities: str
    version: str = field(init=False, compare=False)
    users: tuple[User, ...] = field(init=False, compare=False, repr=False)
    statements: tuple[Statement, ...] = field(init=False, compare=False, repr=False)
    mixing: MixingUse = field(init=False, compare=False, repr=False)
    schema: cedarpy.Schema = field(init=False, compare=False, repr=False)
    parsed: cedarpy.PolicySet = field(init=False, compare=False, repr=False)
    principals: cedarpy.Entities = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Parse and validate both."""
        policies = _bounded("policies", self.policies, MAX_POLICIES_BYTES)
        entities = _bounded("entities", self.entities, MAX_ENTITIES_BYTES)
        schema = cedarpy.Schema.from_str(SCHEMA)
        statements = split_statements(self.policies)
        users = read_users(self.entities)
        found = {
            "version": files_digest(
                {"policies": bytes_digest(policies), "entities": bytes_digest(entities)}
            ),
            "users": users,
            "statements": statements,
            "schema": schema,
            "parsed": _parsed(self.policies, statements, schema),
            "mixing": mixing_use(json.loads(cedarpy.policies_to_json_str(self.policies))),
            "principals": cedarpy.Entities.from_json_str(
                json.dumps([user.as_entity() for user in users]), schema
            ),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def knows(self, principal: str) -> bool:
        """Whether a principal is among the users.

        Args:
            principal: Its name.

        Returns:
            Whether it is.
        """
        return principal in self._names

    def place(self, parser_name: str, annotation: str | None = None) -> str:
        """What a person calls a policy.

        Args:
            parser_name: What Cedar calls it, ``"policy0"``.
            annotation: Its ``@id``, where it has one.

        Returns:
            Its ``@id``, or its number, and its line.
        """
        match = _PARSER_NAME.fullmatch(parser_name)
        if match is None or int(match[1]) >= len(self.statements):
            return annotation or parser_name
        number = int(match[1])
        return f"{annotation or f'policy {number + 1}'} (line {self.statements[number].line})"

    def readable(self, message: str) -> str:
        """One of Cedar's messages, with the policies by their places.

        Args:
            message: The message, with names such as ``policy0``.

        Returns:
            The message for a person.
        """
        return re.sub(r"`(policy\d+)`", lambda match: self.place(match[1]), message)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(user.name for user in self.users)


def _bounded(what: str, text: str, limit: int) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise InputError(what, "hold half a character", "write UTF-8") from None
    if len(data) > limit:
        raise InputError(what, f"{len(data)} bytes", f"at most {limit} are read")
    return data


def _parsed(
    text: str, statements: Sequence[Statement], schema: cedarpy.Schema
) -> cedarpy.PolicySet:
    try:
        parsed = cedarpy.PolicySet.from_str(text)
    except ValueError as error:
        raise _syntax_error(statements, error) from None
    if parsed.templates():
        raise InputError(
            "policies", "hold a template", "write principals and adapters out; slots are not filled"
        )
    if len(parsed) != len(statements):
        raise InputError("policies", "cannot be told apart", "end each one with a semicolon")
    try:
        # The validator gives up, and passes, what nests more deeply than its stack allows.
        parsed.to_pst()
    except ValueError as error:
        raise InputError(
            "policies",
            str(error),
            "divide it into several policies, or ask for membership in a set",
        ) from None
    result = cedarpy.validate_policies(text, schema)
    for found in result.errors:
        raise InputError(_where(found.policy_id, statements), _cause(found), "see docs/access.md")
    if not result.validation_passed:
        raise InputError("policies", "do not fit the schema", "see docs/access.md")
    return parsed


def _syntax_error(statements: Sequence[Statement], error: ValueError) -> InputError:
    remedy = "see docs/access.md, or Cedar's own documentation"
    for statement in statements:
        try:
            cedarpy.PolicySet.from_str(statement.text)
        except ValueError as alone:
            return InputError(f"policies, line {statement.line}", shown(str(alone)), remedy)
    return InputError("policies", shown(str(error)), remedy)


def _where(parser_name: str, statements: Sequence[Statement]) -> str:
    match = _PARSER_NAME.fullmatch(parser_name)
    if match is None or int(match[1]) >= len(statements):
        return "policies"
    return f"policies, line {statements[int(match[1])].line}"


def _cause(error: cedarpy.ValidationError) -> str:
    return shown(re.sub(r"^for policy `policy\d+`, ", "", error.error))
