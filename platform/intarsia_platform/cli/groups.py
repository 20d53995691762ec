"""``intarsia groups``: data groups, each with an adapter trained on its own records alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest

from intarsia_platform.cli.counted_progress import counted_progress
from intarsia_platform.cli.output import check_json_place, facts, present, short_digest, table
from intarsia_platform.cli.settings import IntarsiaCommand, Settings, command_group, settings_of
from intarsia_platform.groups.rows import AUTOMATIC, DESCRIPTOR

if TYPE_CHECKING:
    from intarsia_client.records import Record

    from intarsia_platform.groups.lifecycle import GroupChange, GroupLifecycle
    from intarsia_platform.groups.rows import Group

app = command_group()

Name = Annotated[str, typer.Argument(metavar="NAME")]
Base = Annotated[
    str, typer.Option("--base", metavar="BASE", help="A transformers folder or hub identifier.")
]
Data = Annotated[Path, typer.Option("--data", metavar="FILE", help="The records.")]
Labels = Annotated[
    list[str],
    typer.Option("--label", metavar="LABEL", help="A word that policies speak of; repeatable."),
]
Rank = Annotated[int, typer.Option("--rank", metavar="R", help="Rank of every module.")]
Epochs = Annotated[int, typer.Option("--epochs", metavar="E", help="Passes over the records.")]
LearningRate = Annotated[
    float,
    typer.Option("--learning-rate", metavar="X", help="AdamW's peak; 0 goes by the base's width."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Sequences in one step.")]
MaxLength = Annotated[
    int,
    typer.Option(
        "--max-length", metavar="N", help="Longest sequence; 0 for 128, or what the base takes."
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option("--module", metavar="NAME", help="A module to train; else all linear ones."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Decides everything random.")]
Task = Annotated[
    str, typer.Option("--task", metavar="TASK", help="causal-lm or sequence-classification.")
]
TextField = Annotated[str, typer.Option("--text", metavar="FIELD", help="The field of texts.")]
ClassField = Annotated[
    str, typer.Option("--class", metavar="FIELD", help="The field of classes, for a classifier.")
]
Classes = Annotated[
    Path | None,
    typer.Option("--classes", metavar="FILE", help="All classes in order, one a line."),
]
Encoder = Annotated[
    str, typer.Option("--encoder", metavar="NAME", help="What reads texts: auto, minilm or base.")
]
Method = Annotated[
    str, typer.Option("--descriptor", metavar="NAME", help="How the texts are described.")
]
Owner = Annotated[str, typer.Option("--owner", metavar="WHO", help="Who answers for it.")]
Tenant = Annotated[str, typer.Option("--tenant", metavar="WHO", help="Whose it is.")]
Level = Annotated[int, typer.Option("--level", metavar="N", help="The clearance that it asks for.")]
Expires = Annotated[
    str | None, typer.Option("--expires", metavar="TIME", help="No use from then on: 2030-01-31.")
]


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
    from intarsia_platform.groups.lifecycle import NewGroup
    from intarsia_platform.groups.rows import GroupSettings, Rights
    from intarsia_platform.groups.training import task_of

    settings = settings_of(context)
    check_json_place(settings)
    task = task or task_of(base)
    named = _classes(classes)
    new = NewGroup(
        name=name,
        base=base,
        records=_records(data, task, text, class_field, "--data"),
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
        rights=Rights(owner=owner, tenant=tenant, level=level, expires_at=_moment(expires)),
    )
    with _opened(settings, create=True) as lifecycle:
        with counted_progress(f"training {name}", "steps") as tell:
            group = lifecycle.add(new, tell=tell)
        _present(settings, lifecycle, group)


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
    with _opened(settings) as lifecycle:
        task = lifecycle.groups.get(name).task
        come = _records(add, task, text, class_field, "--add") if add else []
        leave = _records(remove, "", text, class_field, "--remove", task) if remove else []
        with counted_progress(f"training {name}", "steps") as tell:
            change = lifecycle.update(name, add=come, remove=leave, tell=tell)
        _present(settings, lifecycle, change.group, change)


@app.command("list", cls=IntarsiaCommand, help="List all groups, by name.")
def list_command(context: typer.Context) -> None:
    """List the groups.

    Args:
        context: The command's context.
    """
    settings = settings_of(context)
    with _opened(settings) as lifecycle:
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
    mapping = {"groups": [_mapping(group) for group in groups]}
    present(settings, mapping, table(headings, rows, right="version records rank"))


@app.command("show", cls=IntarsiaCommand, help="Show one group in full, its signature checked.")
def show_command(context: typer.Context, name: Name) -> None:
    """Show one group.

    Args:
        context: The command's context.
        name: Which one.
    """
    settings = settings_of(context)
    with _opened(settings) as lifecycle:
        _present(settings, lifecycle, lifecycle.groups.get(name))


@app.command("remove", cls=IntarsiaCommand, help="Remove a group and all that was made of it.")
def remove_command(context: typer.Context, name: Name) -> None:
    """Remove a group.

    Args:
        context: The command's context.
        name: Which one.
    """
    settings = settings_of(context)
    with _opened(settings) as lifecycle:
        change = lifecycle.remove(name)
    shown = {"removed": name, "records": change.removed, "invalidated": len(change.invalidated)}
    mapping = {**shown, "invalidated": list(change.invalidated)}
    present(settings, mapping, facts(shown))


@contextmanager
def _opened(settings: Settings, *, create: bool = False) -> Iterator[GroupLifecycle]:
    from intarsia_platform.groups.lifecycle import open_groups

    with open_groups(settings.open_home(create=create)) as lifecycle:
        yield lifecycle


def _present(
    settings: Settings,
    lifecycle: GroupLifecycle,
    group: Group,
    change: GroupChange | None = None,
) -> None:
    """Show a group with its rights, its descriptor and whether its signature holds."""
    rights = lifecycle.groups.rights(group.adapter_digest)
    descriptor = lifecycle.groups.descriptors([group.adapter_digest])[group.adapter_digest]
    lifecycle.groups.admitted(group.adapter_digest, lifecycle.key)
    mapping = {
        **_mapping(group),
        "descriptor": {
            "digest": group.descriptor_digest,
            "method": descriptor.method,
            "encoder": descriptor.encoder,
        },
        "owner": rights.owner,
        "tenant": rights.tenant,
        "level": rights.level,
        "expires_at": rights.expires_at.isoformat() if rights.expires_at else None,
        "signature": bytes_digest(lifecycle.groups.signature(group.adapter_digest)),
        "signed_by": lifecycle.key.digest,
    }
    shown = {
        **{
            key.replace("_", " "): None if value == "" else value
            for key, value in mapping.items()
            if key != "settings"
        },
        "labels": ", ".join(group.labels),
        "descriptor": f"{descriptor.method} of {group.settings.encoder}",
        "trained with": ", ".join(
            f"{key.replace('_', ' ')} {getattr(group.settings, key):g}"
            for key in ("rank", "epochs", "batch_size", "learning_rate", "max_length", "seed")
        ),
    }
    if change is not None:
        mapping |= {
            "added": change.added,
            "removed": change.removed,
            "not_found": change.not_found,
            "invalidated": list(change.invalidated),
        }
        shown |= {
            "records added": change.added,
            "records removed": change.removed,
            "not found": change.not_found,
            "invalidated": len(change.invalidated),
        }
    present(settings, mapping, facts(shown))


def _mapping(group: Group) -> dict[str, Any]:
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
        "settings": group.settings.as_mapping(),
        "created_at": group.created_at.isoformat(),
        "updated_at": group.updated_at.isoformat(),
    }


def _records(
    path: Path, task: str, text: str, class_field: str, thing: str, own_task: str = ""
) -> list[Record]:
    """Read records; those that leave (``task`` empty) need no class, even of a classifier."""
    from intarsia_client.records import read_records

    classifies = "sequence-classification" in (task, own_task)
    return read_records(
        path,
        text=text,
        label=class_field if classifies else None,
        client=None,
        require_label=task == "sequence-classification",
        thing=thing,
    )


def _classes(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--classes", f"{path} ({error})", "name a file that can be read") from None
    return tuple(line.strip() for line in lines if line.strip())


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError("--expires", text, "write it as 2030-01-31 or with T12:00+00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
