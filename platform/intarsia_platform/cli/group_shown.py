"""How ``intarsia groups`` opens a home's groups and shows one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from intarsia_client.files import bytes_digest

from intarsia_platform.cli.output import facts, present
from intarsia_platform.cli.settings import Settings

if TYPE_CHECKING:
    from intarsia_platform.groups.lifecycle import GroupLifecycle
    from intarsia_platform.groups.rows import Group, Rights


@contextmanager
def opened_groups(settings: Settings, *, create: bool = False) -> Iterator[GroupLifecycle]:
    """Open the groups of the home that a command runs with.

    Args:
        settings: What it runs with.
        create: Whether to make the home where it is missing.

    Yields:
        The groups.

    Raises:
        InputError: If the home is missing.
        StorageError: If it cannot be read or written.
    """
    from intarsia_platform.groups.lifecycle import open_groups

    with open_groups(settings.open_home(create=create)) as lifecycle:
        yield lifecycle


def present_group(
    settings: Settings,
    lifecycle: GroupLifecycle,
    group: Group,
    *,
    mapping: Mapping[str, Any] | None = None,
    shown: Mapping[str, object] | None = None,
) -> None:
    """Show a group with its rights, its descriptor and whether its signature holds.

    Args:
        settings: What the command runs with.
        lifecycle: The home's groups.
        group: The group.
        mapping: What ``--json`` says beside the group's own.
        shown: What a person is shown beside it.

    Raises:
        IntegrityError: If the signature does not hold.
    """
    rights = lifecycle.groups.rights(group.adapter_digest)
    descriptor = lifecycle.groups.descriptors([group.adapter_digest])[group.adapter_digest]
    lifecycle.groups.admitted(group.adapter_digest, lifecycle.key)
    whole = {
        **group_mapping(group),
        "descriptor": {
            "digest": group.descriptor_digest,
            "method": descriptor.method,
            "encoder": descriptor.encoder,
        },
        **rights_mapping(rights),
        "signature": bytes_digest(lifecycle.groups.signature(group.adapter_digest)),
        "signed_by": lifecycle.key.digest,
    }
    trained = ["rank", "epochs", "batch_size", "learning_rate", "max_length", "seed"]
    if group.settings.clients:
        trained.insert(1, "rounds")
    facts_shown = {
        **{
            key.replace("_", " "): None if value == "" else value
            for key, value in whole.items()
            if key != "settings"
        },
        "labels": ", ".join(group.labels),
        "clients": ", ".join(group.settings.clients) or None,
        "descriptor": f"{descriptor.method} of {group.settings.encoder}",
        "trained with": ", ".join(
            f"{key.replace('_', ' ')} {getattr(group.settings, key):g}" for key in trained
        ),
    }
    present(settings, {**whole, **(mapping or {})}, facts({**facts_shown, **(shown or {})}))


def rights_mapping(rights: Rights) -> dict[str, Any]:
    """What policies may ask of an adapter, as JSON values."""
    return {
        "owner": rights.owner,
        "tenant": rights.tenant,
        "level": rights.level,
        "expires_at": rights.expires_at.isoformat() if rights.expires_at else None,
    }


def group_mapping(group: Group) -> dict[str, Any]:
    """A group's row as JSON values."""
    return {
        "name": group.name,
        "version": group.version,
        "records": group.records,
        "adapter": group.adapter_digest,
        "base": group.base,
        "base_digest": group.base_digest,
        "task": group.task,
        "rank": group.settings.rank,
        "labels": list(group.labels),
        "clients": list(group.settings.clients),
        "settings": group.settings.as_mapping(),
        "created_at": group.created_at.isoformat(),
        "updated_at": group.updated_at.isoformat(),
    }
