"""``intarsia groups admit``: adapters that no group trained here, checked, labelled and signed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.group_federation import (
    GivenExpires,
    GivenLabels,
    GivenLevel,
    GivenOwner,
    GivenTenant,
    Sources,
    known_source,
)
from intarsia_platform.cli.group_options import Classes, classes_of, moment_of
from intarsia_platform.cli.group_shown import rights_mapping
from intarsia_platform.cli.output import facts, present
from intarsia_platform.cli.settings import Settings, settings_of

if TYPE_CHECKING:
    from intarsia_platform.groups.desk import SignedFolder
    from intarsia_platform.groups.lifecycle import GroupLifecycle
    from intarsia_platform.groups.rows import Rights
    from intarsia_platform.registry.adapters import AdapterRegistry
    from intarsia_platform.registry.rows import AdapterVersion

Adapter = Annotated[str, typer.Argument(metavar="ADAPTER")]
Signature = Annotated[
    Path | None,
    typer.Option("--signature", metavar="FILE", help="The folder's signature, beside it."),
]
PublicKey = Annotated[
    Path | None,
    typer.Option("--public-key", metavar="FILE", help="The public key of the site that signed."),
]
AdapterName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="What to call it; its own name by default."),
]
AdapterBase = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="Where its base lies here; as it says by default."),
]
Site = Annotated[str, typer.Option("--site", metavar="WHO", help="What the site is called.")]
Shards = Annotated[
    list[str] | None,
    typer.Option("--shard", metavar="DIGEST", help="Digest of the site's records; repeatable."),
]
MaxRank = Annotated[
    int, typer.Option("--max-rank", metavar="R", help="Largest rank of a module that is let in.")
]


def admit_command(
    context: typer.Context,
    adapter: Adapter,
    labels: GivenLabels = None,
    signature: Signature = None,
    public_key: PublicKey = None,
    name: AdapterName = None,
    base: AdapterBase = None,
    site: Site = "",
    shards: Shards = None,
    sources: Sources = None,
    classes: Classes = None,
    max_rank: MaxRank = 256,
    owner: GivenOwner = None,
    tenant: GivenTenant = None,
    level: GivenLevel = None,
    expires: GivenExpires = None,
) -> None:
    """Admit an adapter.

    Args:
        context: The command's context.
        adapter: A registered adapter's name or digest, or a PEFT folder.
        labels: Its labels, beside those that it has and inherits.
        signature: The folder's signature.
        public_key: The public key of the site that signed it.
        name: What to call a folder's adapter.
        base: Where a folder's base lies here.
        site: What the site is called.
        shards: Digests of the records that a folder's adapter was trained on.
        sources: Adapters and artefacts that it was made of.
        classes: A file with a classifier's classes.
        max_rank: Largest rank that is let in.
        owner: Who answers for it; of one that was admitted before, what is left out of these four
            stays as it is.
        tenant: Whose it is.
        level: The clearance that it asks for.
        expires: When it expires.
    """
    from intarsia_platform.groups.admission import AdmissionRules
    from intarsia_platform.groups.desk import AdmissionDesk
    from intarsia_platform.groups.lifecycle import GroupLifecycle
    from intarsia_platform.registry.adapters import AdapterRegistry
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.store import ContentStore

    settings = settings_of(context)
    rights = {"owner": owner, "tenant": tenant, "level": level, "expires_at": moment_of(expires)}
    given: dict[str, Any] = {
        "labels": labels or (),
        "rules": AdmissionRules(max_rank=max_rank),
        "classes": classes_of(classes),
    }
    home = settings.open_home(create=signature is not None)
    with open_database(home.database_url) as database:
        store = ContentStore(home.store_url)
        lifecycle = GroupLifecycle(database, store, home)
        lifecycle.recover()
        registry, desk = AdapterRegistry(database, store), AdmissionDesk(database, store, home)
        given["sources"] = [known_source(registry, source) for source in sources or ()]
        if signature is None:
            given["rights"] = _rights(lifecycle, _registered(registry, adapter), rights)
            version = desk.admit(adapter, **given)
        else:
            given["rights"] = _rights(lifecycle, None, rights)
            folder = _folder(adapter, signature, public_key, site, shards or [])
            version = desk.admit_folder(folder, name=name, base=base, **given)
        _show(settings, lifecycle, version)


def _folder(
    adapter: str, signature: Path, public_key: Path | None, site: str, shards: list[str]
) -> SignedFolder:
    from intarsia_platform.groups.desk import SignedFolder

    if public_key is None:
        raise InputError("--public-key", "none", "name the key of the site that signed")
    return SignedFolder(
        path=Path(adapter),
        signature=signature,
        public_key=public_key,
        site=site,
        shards=shards,
    )


def _registered(registry: AdapterRegistry, adapter: str) -> str:
    """The digest of a registered adapter; of a folder that is none it is said what it lacks."""
    try:
        return registry.get(adapter).digest
    except InputError:
        if Path(adapter).is_dir():
            raise InputError(
                f"adapter folder {adapter}",
                "not signed",
                "sign it where it was trained; give --signature and --public-key",
            ) from None
        raise


def _rights(lifecycle: GroupLifecycle, digest: str | None, given: Mapping[str, Any]) -> Rights:
    """The rights asked for: those that are named, and of others what an adapter has already."""
    from intarsia_platform.groups.rows import Rights

    before = Rights()
    if digest is not None:
        with contextlib.suppress(InputError):  # It was never admitted.
            before = lifecycle.groups.rights(digest)
    named = {key: value for key, value in given.items() if value is not None}
    return dataclasses.replace(before, **named)


def _show(settings: Settings, lifecycle: GroupLifecycle, version: AdapterVersion) -> None:
    from intarsia_client.files import bytes_digest

    lifecycle.groups.admitted(version.digest, lifecycle.key)
    mapping = {
        "name": version.name,
        "adapter": version.digest,
        "base": version.base,
        "base_digest": version.base_digest,
        "task": version.task,
        "rank": version.rank,
        "labels": list(version.labels),
        **rights_mapping(lifecycle.groups.rights(version.digest)),
        "signature": bytes_digest(lifecycle.groups.signature(version.digest)),
        "signed_by": lifecycle.key.digest,
    }
    shown = {key.replace("_", " "): value or None for key, value in mapping.items()}
    shown |= {"labels": ", ".join(version.labels), "level": mapping["level"]}
    present(settings, mapping, facts(shown))
