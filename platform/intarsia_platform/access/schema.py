"""The Cedar schema that every policy is validated against.

Every attribute is always there: a policy needs no ``has``, and a misspelt attribute is an error
when the policies are set, not a permission that silently never applies.
"""

from __future__ import annotations

SCHEMA = """\
entity User = {
  "groups": Set<String>,
  "clearance": Long,
  "tenant": String
};
entity Adapter = {
  "name": String,
  "labels": Set<String>,
  "owner": String,
  "tenant": String,
  "level": Long
};
action "use" appliesTo {
  principal: User,
  resource: Adapter,
  context: {
    "purpose": String,
    "labels": Set<String>,
    "mixing": Bool
  }
};
"""
"""``labels`` is the union over all adapters that an answer would draw on, ``mixing`` whether they
are more than one. An adapter's identifier, as in ``Adapter::"finance"``, is its name."""

USER = "User"
ADAPTER = "Adapter"
ACTION = {"type": "Action", "id": "use"}

LONG_LIMIT = 2**63
"""Cedar's ``Long`` holds whole numbers from minus this up to, but not including, this."""
