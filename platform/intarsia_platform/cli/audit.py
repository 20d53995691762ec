"""``intarsia audit``: look at the audit log, and find out whether it was altered."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from intarsia_platform.cli.output import facts, present, short_digest, table
from intarsia_platform.cli.registry import open_registry
from intarsia_platform.cli.settings import IntarsiaCommand, command_group, settings_of

app = command_group()

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@app.command(
    "verify",
    cls=IntarsiaCommand,
    help="Check every entry and the chain between them. Keep the head that it shows elsewhere: "
    "with --head a later check also finds out whether entries were cut off the end.",
)
def verify_command(
    context: typer.Context,
    head: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="A head noted earlier; must still be in the chain."),
    ] = None,
) -> None:
    """Check the log.

    Args:
        context: The command's context.
        head: A digest that was noted earlier.
    """
    from intarsia_platform.access.audit import AuditLog

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        count, newest = AuditLog(registry.database).verified_head(head)
    mapping = {"entries": count, "head": newest}
    present(settings, mapping, facts(mapping))


@app.command("list", cls=IntarsiaCommand, help="List entries, the newest last; unverified.")
def list_command(
    context: typer.Context,
    last: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many from the end.", show_default=True)
    ] = 50,
) -> None:
    """List entries.

    Args:
        context: The command's context.
        last: How many from the end.
    """
    from intarsia_platform.access.audit import AuditLog

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        entries = AuditLog(registry.database).entries(last=last)
    mapping = {
        "entries": [
            {
                "sequence": entry.sequence,
                "created_at": entry.created_at.isoformat(),
                "event": dict(entry.event),
                "previous": entry.previous,
                "digest": entry.digest,
            }
            for entry in entries
        ]
    }
    rows = [
        (
            entry.sequence,
            f"{entry.created_at:%Y-%m-%d %H:%M:%S} UTC",
            entry.event.get("action"),
            _rest(dict(entry.event)),
            short_digest(entry.digest),
        )
        for entry in entries
    ]
    headings = ["number", "when", "action", "event", "digest"]
    present(settings, mapping, table(headings, rows, right="number"))


def _rest(event: dict[str, object]) -> str:
    """What an entry says, without what it leaves empty; digests are cut, as everywhere."""
    words = ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in event.items()
        if name != "action" and value not in (None, "", [])
    )
    return _DIGEST.sub(lambda found: short_digest(found[0]) or "", words)
