"""``intarsia keys``: API keys for the gateway."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intarsia_platform.cli.output import facts, present, table
from intarsia_platform.cli.registry import open_registry
from intarsia_platform.cli.settings import IntarsiaCommand, command_group, settings_of

if TYPE_CHECKING:
    from intarsia_platform.access.keys import ApiKey

app = command_group()


@app.command("create", cls=IntarsiaCommand, help="Make a key for a principal; it is shown once.")
def create_command(
    context: typer.Context,
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL")],
    days: Annotated[
        float | None, typer.Option(metavar="DAYS", help="How long it holds; for ever by default.")
    ] = None,
) -> None:
    """Make a key.

    Args:
        context: The command's context.
        principal: Whom it stands for.
        days: How long it holds.
    """
    from intarsia_client.errors import InputError

    from intarsia_platform.access.keys import ApiKeys

    settings = settings_of(context)
    try:
        lifetime = None if days is None else timedelta(days=days)
    except (OverflowError, ValueError):
        raise InputError("--days", days, "use a number above 0") from None
    with open_registry(settings.open_home(create=True)) as registry:
        key_id, secret = ApiKeys(registry.database).create(principal, lifetime)
    mapping = {"id": key_id, "principal": principal, "key": secret}
    shown = facts(mapping)
    present(settings, mapping, shown, "", "keep the key now; only a hash of it is stored")


@app.command("list", cls=IntarsiaCommand, help="List all keys, without their secrets.")
def list_command(context: typer.Context) -> None:
    """List the keys.

    Args:
        context: The command's context.
    """
    from intarsia_platform.access.keys import ApiKeys

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        keys = ApiKeys(registry.database).list()
    found = [_mapping(key) for key in keys]
    headings = ["id", "principal", "state", "created_at", "expires_at", "revoked_at"]
    rows = [tuple(one[name] for name in headings) for one in found]
    present(settings, {"keys": found}, table([name.replace("_at", "") for name in headings], rows))


@app.command(
    "revoke", cls=IntarsiaCommand, help="Revoke a key; answers that run under it end at once."
)
def revoke_command(
    context: typer.Context, key_id: Annotated[str, typer.Argument(metavar="KEY_ID")]
) -> None:
    """Revoke a key.

    Args:
        context: The command's context.
        key_id: Its identifier.
    """
    from intarsia_platform.access.keys import ApiKeys

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        key = ApiKeys(registry.database).revoke(key_id)
    mapping = _mapping(key)
    present(settings, mapping, facts({"revoked": key.id, "principal": key.principal}))


def _mapping(key: ApiKey) -> dict[str, Any]:
    held = "holds" if key.holds(datetime.now(UTC)) else "expired"
    return {
        "id": key.id,
        "principal": key.principal,
        "state": "revoked" if key.revoked_at else held,
        "created_at": _moment(key.created_at),
        "expires_at": _moment(key.expires_at),
        "revoked_at": _moment(key.revoked_at),
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
