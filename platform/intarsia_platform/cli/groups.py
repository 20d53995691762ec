"""``intarsia groups``: data groups, each with an adapter trained on its own records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.counted_progress import counted_progress
from intarsia_platform.cli.group_admission import admit_command
from intarsia_platform.cli.group_federation import federate_command
from intarsia_platform.cli.group_options import (
    Base,
    BatchSize,
    Classes,
    ClassField,
    Data,
    Encoder,
    Epochs,
    Expires,
    Labels,
    LearningRate,
    Level,
    MaxLength,
    Method,
    Modules,
    Name,
    Owner,
    Rank,
    Seed,
    Task,
    Tenant,
    TextField,
    classes_of,
    moment_of,
    records_of,
)
from intarsia_platform.cli.group_shown import group_mapping, opened_groups, present_group
from intarsia_platform.cli.output import check_json_place, facts, present, short_digest, table
from intarsia_platform.cli.settings import IntarsiaCommand, command_group, settings_of
from intarsia_platform.groups.rows import AUTOMATIC, DESCRIPTOR

app = command_group()


@app.command("add", cls=IntarsiaCommand, help="Train an adapter on a group's records, publish it.")
def add_command(
    context: typer.Context,
    name: Name,
    base: Base,
    data: Data,
    labels: Labels,
    rank: Rank = 8,
    epochs: Epochs = 3,
    learning_rate: LearningRate = 0.0,
    batch_size: BatchSize = 8,
    max_length: MaxLength = 0,
    modules: Modules = None,
    seed: Seed = 0,
    task: Task = "",
    text: TextField = "text",
    class_field: ClassField = "label",
    classes: Classes = None,
    encoder: Encoder = AUTOMATIC,
    descriptor: Method = DESCRIPTOR,
    owner: Owner = "",
    tenant: Tenant = "",
    level: Level = 0,
    expires: Expires = None,
) -> None:
    """Add a group.

    Args:
        context: The command's context.
        name: What to call it.
        base: The base model.
        data: The records' file.
        labels: Its labels.
        rank: Rank of every module.
        epochs: Passes over the records.
        learning_rate: AdamW's peak rate.
        batch_size: Sequences in one step.
        max_length: Longest sequence.
        modules: Modules to train.
        seed: The seed.
        task: The task; empty asks the base.
        text: The field with the text.
        class_field: The field with the class.
        classes: A file with the classes.
        encoder: The encoder.
        descriptor: The descriptor method.
        owner: Who answers for it.
        tenant: Whose it is.
        level: The clearance that it asks for.
        expires: When it expires.
    """
    from intarsia_platform.groups.new_group import NewGroup
    from intarsia_platform.groups.rows import GroupSettings, Rights
    from intarsia_platform.groups.tasks import task_of

    settings = settings_of(context)
    check_json_place(settings)
    task = task or task_of(base)
    named = classes_of(classes)
    new = NewGroup(
        name=name,
        base=base,
        records=records_of(data, task, text, class_field, "--data"),
        labels=labels,
        task=task,
        settings=GroupSettings(
            rank=rank,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            target_modules=tuple(modules or ()),
            seed=seed,
            classes=named,
            own_classes=not named,
            encoder=encoder,
            descriptor=descriptor,
        ),
        rights=Rights(owner=owner, tenant=tenant, level=level, expires_at=moment_of(expires)),
    )
    with opened_groups(settings, create=True) as lifecycle:
        with counted_progress(f"training {name}", "steps") as tell:
            group = lifecycle.add(new, tell=tell)
        present_group(settings, lifecycle, group)


@app.command("update", cls=IntarsiaCommand, help="Change a group's records and train it again.")
def update_command(
    context: typer.Context,
    name: Name,
    add: Annotated[
        Path | None, typer.Option("--add", metavar="FILE", help="Records that come.")
    ] = None,
    remove: Annotated[
        Path | None,
        typer.Option("--remove", metavar="FILE", help="Records equal to these leave."),
    ] = None,
    text: TextField = "text",
    class_field: ClassField = "label",
) -> None:
    """Update a group.

    Args:
        context: The command's context.
        name: Which one.
        add: A file with records that come.
        remove: A file with records that leave.
        text: The field with the text.
        class_field: The field with the class.

    Raises:
        InputError: If neither file is given.
    """
    settings = settings_of(context)
    check_json_place(settings)
    if add is None and remove is None:
        raise InputError("groups update", "no file", "name one with --add or --remove")
    with opened_groups(settings) as lifecycle:
        task = lifecycle.groups.get(name).task
        come = records_of(add, task, text, class_field, "--add") if add else []
        leave = records_of(remove, "", text, class_field, "--remove", task) if remove else []
        with counted_progress(f"training {name}", "steps") as tell:
            change = lifecycle.update(name, add=come, remove=leave, tell=tell)
        present_group(
            settings,
            lifecycle,
            change.group,
            mapping={
                "added": change.added,
                "removed": change.removed,
                "not_found": change.not_found,
                "invalidated": list(change.invalidated),
            },
            shown={
                "records added": change.added,
                "records removed": change.removed,
                "not found": change.not_found,
                "invalidated": len(change.invalidated),
            },
        )


@app.command("list", cls=IntarsiaCommand, help="List all groups, by name.")
def list_command(context: typer.Context) -> None:
    """List the groups.

    Args:
        context: The command's context.
    """
    settings = settings_of(context)
    with opened_groups(settings) as lifecycle:
        groups = lifecycle.groups.list()
    rows = [
        (
            group.name,
            group.version,
            group.records,
            short_digest(group.adapter_digest),
            group.settings.rank,
            group.task,
            group.base,
            ", ".join(group.labels),
        )
        for group in groups
    ]
    headings = ["name", "version", "records", "adapter", "rank", "task", "base", "labels"]
    mapping = {"groups": [group_mapping(group) for group in groups]}
    present(settings, mapping, table(headings, rows, right="version records rank"))


@app.command("show", cls=IntarsiaCommand, help="Show one group in full, its signature checked.")
def show_command(context: typer.Context, name: Name) -> None:
    """Show one group.

    Args:
        context: The command's context.
        name: Which one.
    """
    settings = settings_of(context)
    with opened_groups(settings) as lifecycle:
        present_group(settings, lifecycle, lifecycle.groups.get(name))


@app.command("remove", cls=IntarsiaCommand, help="Remove a group and all that was made of it.")
def remove_command(context: typer.Context, name: Name) -> None:
    """Remove a group.

    Args:
        context: The command's context.
        name: Which one.
    """
    settings = settings_of(context)
    with opened_groups(settings) as lifecycle:
        change = lifecycle.remove(name)
    shown = {"removed": name, "records": change.removed, "invalidated": len(change.invalidated)}
    mapping = {**shown, "invalidated": list(change.invalidated)}
    present(settings, mapping, facts(shown))


app.command(
    "federate",
    cls=IntarsiaCommand,
    help="Train a group by a federation of the clients that hold its data. CONFIG is that of "
    "`intarsia simulate`; typed again, it goes on, or takes up what changed at the clients.",
)(federate_command)
app.command(
    "admit",
    cls=IntarsiaCommand,
    help="Let an adapter in that no group trained here. ADAPTER is registered already, or a PEFT "
    "folder that a site signed.",
)(admit_command)
