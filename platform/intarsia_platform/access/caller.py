"""Who stands behind a credential that holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who a credential stands for.

    Args:
        principal: The principal.
        credential: An API key's identifier, for the ticket; ``""`` for a token.
        until: When a token ends, in seconds since 1970; None for a key, whose end its ticket
            knows.
    """

    principal: str
    credential: str = ""
    until: float | None = None
