"""The words of a refusal: the same for what is forbidden and for what does not exist."""

from __future__ import annotations

from intarsia_client.errors import AccessError

_SHOWN = 120


def refused(thing: str, name: str) -> AccessError:
    """The one error for unknown and forbidden alike.

    Its words depend on what was asked for alone, so that they tell nothing of what is there.

    Args:
        thing: ``"adapter"`` or ``"principal"``.
        name: What the caller asked for.

    Returns:
        The error, to be raised.
    """
    return AccessError(
        f"{thing} {shown(name)}", "is not one that you may use", "ask its steward for access"
    )


def not_authenticated() -> AccessError:
    """The one error for every API key and bearer token that does not hold.

    Returns:
        The error; it repeats nothing of the credential.
    """
    return AccessError("credential", "is not valid here", "ask the steward for a new one")


def bad_ticket() -> AccessError:
    """The one error for a ticket that is forged, expired, used before or revoked.

    Returns:
        The error, to be raised.
    """
    return AccessError("ticket", "is not valid, or not valid any more", "ask for a new one")


def shown(text: str) -> str:
    """A stranger's text, short enough for a line.

    Args:
        text: Any text; lone surrogates and control characters are escaped.

    Returns:
        At most 120 characters and an ellipsis.
    """
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: _SHOWN + 1])
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}…"
