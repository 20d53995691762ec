"""``intarsia groups federate``: a group whose data lie with several clients."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.group_options import Encoder, Method, Name, moment_of
from intarsia_platform.cli.group_shown import present_group
from intarsia_platform.cli.lines import say
from intarsia_platform.cli.output import check_json_place, facts, present
from intarsia_platform.cli.settings import Settings, settings_of
from intarsia_platform.groups.rows import AUTOMATIC, FEDERATED_DESCRIPTOR

if TYPE_CHECKING:
    from intarsia_platform.groups.federating import FederatedChange, FederatedGroups
    from intarsia_platform.groups.lifecycle import GroupLifecycle
    from intarsia_platform.groups.rows import Group, Rights
    from intarsia_platform.registry.adapters import AdapterRegistry

Configuration = Annotated[
    Path | None,
    typer.Option("--from", metavar="CONFIG", help="A federation's TOML file, as of `simulate`."),
]
Clients = Annotated[
    list[str] | None,
    typer.Option("--clients", metavar="A,B,…", help="Whose data it is; repeatable."),
]
GivenLabels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="LABEL", help="A word that policies speak of; repeatable."),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source", metavar="REF", help="An adapter or artefact it was made of too; repeatable."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one key; may be repeated."),
]
Grid = Annotated[
    str, typer.Option("--grid", metavar="NAME", help="Where clients run: inprocess or ray.")
]
GiveUp = Annotated[
    bool, typer.Option("--give-up", help="Delete what an unfinished federation of it left.")
]
GivenOwner = Annotated[
    str | None, typer.Option("--owner", metavar="WHO", help="Who answers for it.")
]
GivenTenant = Annotated[str | None, typer.Option("--tenant", metavar="WHO", help="Whose it is.")]
GivenLevel = Annotated[
    int | None, typer.Option("--level", metavar="N", help="The clearance that it asks for.")
]
GivenExpires = Annotated[
    str | None, typer.Option("--expires", metavar="TIME", help="No use from then on: 2030-01-31.")
]


def federate_command(
    context: typer.Context,
    name: Name,
    configuration: Configuration = None,
    clients: Clients = None,
    labels: GivenLabels = None,
    sources: Sources = None,
    overrides: Overrides = None,
    grid: Grid = "inprocess",
    encoder: Encoder = AUTOMATIC,
    descriptor: Method = FEDERATED_DESCRIPTOR,
    owner: GivenOwner = None,
    tenant: GivenTenant = None,
    level: GivenLevel = None,
    expires: GivenExpires = None,
    give_up: GiveUp = False,
) -> None:
    """Train a group by a federation, or take up what changed at its clients.

    Args:
        context: The command's context.
        name: What to call it, or which one.
        configuration: The federation's TOML file.
        clients: Whose data it is.
        labels: Its labels.
        sources: Adapters and artefacts that the data came from.
        overrides: Keys of the configuration to change.
        grid: Where clients run, whatever the configuration says.
        encoder: The encoder.
        descriptor: The descriptor method.
        owner: Who answers for it; what is left out of these four stays as it is.
        tenant: Whose it is.
        level: The clearance that it asks for.
        expires: When it expires.
        give_up: Delete what an unfinished federation left, and do nothing else.

    Raises:
        InputError: If no configuration is named.
    """
    from intarsia_platform.groups.federating import open_federated_groups

    settings = settings_of(context)
    check_json_place(settings)
    home = settings.open_home(create=not give_up)
    given = {"owner": owner, "tenant": tenant, "level": level, "expires_at": moment_of(expires)}
    rights = {key: value for key, value in given.items() if value is not None}
    with open_federated_groups(home) as (lifecycle, federated):
        if give_up:
            mapping = {"group": name, "given_up": federated.give_up(name)}
            present(settings, mapping, facts(mapping))
            return
        if configuration is None:
            raise InputError("--from", "none", "name a federation's TOML file")
        change = _federated(
            settings,
            federated,
            _typed(context, home.path),
            name=name,
            configuration=_configuration(configuration, overrides or (), grid),
            clients=[one for some in clients or () for one in some.split(",") if one],
            labels=labels or (),
            sources=[known_source(federated.adapters, source) for source in sources or ()],
            rights=_rights(lifecycle, name, rights),
            descriptor=descriptor,
            encoder=encoder,
            grid=grid,
        )
        _warn_of_other_descriptors(lifecycle, change.group)
        _show(settings, lifecycle, change)


def _federated(
    settings: Settings, federated: FederatedGroups, typed: str, **order: Any
) -> FederatedChange:
    """Federate with the progress in sight."""
    from intarsia_platform.cli.progress import watching
    from intarsia_platform.groups.federating import FederationOrder

    with (
        watching(settings.signals) as watch,
        settings.signals.explained(lambda: watch.interrupted_line(typed)),
    ):
        return federated.federate(FederationOrder(**order), observer=watch)


def _configuration(path: Path, overrides: Sequence[str], grid: str) -> Any:
    from intarsia_aggregators.catalog import CATALOG

    from intarsia_platform.configuration import read_configuration

    # The option is checked as the key is.
    named = [*overrides, f"engine.grid={grid}"]
    return read_configuration(path, named, methods=[entry.name for entry in CATALOG])


def _rights(lifecycle: GroupLifecycle, name: str, given: dict[str, Any]) -> Rights | None:
    """The rights that a group shall have, None for those that it has."""
    from intarsia_platform.groups.rows import Rights

    if not given:
        return None
    there = [group for group in lifecycle.groups.list() if group.name == name]
    before = lifecycle.groups.rights(there[0].adapter_digest) if there else Rights()
    return dataclasses.replace(before, **given)


def known_source(registry: AdapterRegistry, reference: str) -> str:
    """The digest of an adapter by any name of it, or of another artefact as it is written.

    Args:
        registry: The home's adapters.
        reference: What was typed.

    Returns:
        The digest; whether there is such an artefact is seen when it is used.
    """
    try:
        return registry.get(reference).digest
    except InputError:
        return reference


def _warn_of_other_descriptors(lifecycle: GroupLifecycle, group: Group) -> None:
    """Retrieval compares descriptors of one kind; of several it takes the commonest."""
    kind = (group.settings.descriptor, group.settings.encoder)
    others = [
        other.name
        for other in lifecycle.groups.list()
        if other.base_digest == group.base_digest
        and (other.settings.descriptor, other.settings.encoder) != kind
    ]
    if others:
        say(
            f"warning: {others[0]} is described otherwise than {group.name}, by "
            f"{kind[0]} of {kind[1]}; retrieval chooses among groups described alike"
        )


def _show(settings: Settings, lifecycle: GroupLifecycle, change: FederatedChange) -> None:
    entered = [one for one in change.clients if one.contributed]
    described = [one for one in change.clients if one.described]
    present_group(
        settings,
        lifecycle,
        change.group,
        mapping={
            "unchanged": change.unchanged,
            "shards": [vars(one) for one in change.clients],
            "rounds": [one.as_mapping() for one in change.rounds],
            "invalidated": list(change.invalidated),
        },
        shown={
            "trained by": ", ".join(f"{one.client} ({one.records})" for one in entered),
            "described by": ", ".join(one.client for one in described),
            "invalidated": len(change.invalidated),
            "unchanged": "yes; nothing had to be trained" if change.unchanged else "no",
        },
    )


def _typed(context: typer.Context, home: Path) -> str:
    """The command line that goes on with a federation: all that was typed, with the home's place.

    Whatever decides the result has to be among it, or it would be other work and begin anew.
    """
    words = ["intarsia", "groups", "federate", str(context.params["name"])]
    for parameter in context.command.params:
        given = context.params.get(parameter.name or "")
        if parameter.name != "name" and given is not None and given is not False:
            values = given if isinstance(given, list | tuple) else [given]
            words += [word for one in values for word in (parameter.opts[0], str(one))]
    words += ["--home", str(home)]
    json = settings_of(context).json
    return shlex.join([*words, "--json", str(json)] if json is not None else words)
