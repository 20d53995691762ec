"""What the commands of ``intarsia groups`` take: their options, and the files that these name."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from intarsia_client.errors import InputError

if TYPE_CHECKING:
    from intarsia_client.records import Record

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


def records_of(
    path: Path, task: str, text: str, class_field: str, thing: str, own_task: str = ""
) -> list[Record]:
    """Read records; those that leave (``task`` empty) need no class, even of a classifier.

    Args:
        path: The file.
        task: The group's task; empty for records that leave.
        text: The field with the text.
        class_field: The field with the class.
        thing: What to call the file in errors.
        own_task: The task of the group that records leave.

    Returns:
        The records.

    Raises:
        InputError: If the file cannot be read.
    """
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


def classes_of(path: Path | None) -> tuple[str, ...]:
    """Class names of a file, one a line; none without a file.

    Args:
        path: The file.

    Returns:
        The names, in order.

    Raises:
        InputError: If the file cannot be read.
    """
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--classes", f"{path} ({error})", "name a file that can be read") from None
    return tuple(line.strip() for line in lines if line.strip())


def moment_of(text: str | None) -> datetime | None:
    """A moment as ``--expires`` writes it; a date without a time is midnight in UTC.

    Args:
        text: What was typed.

    Returns:
        The moment, None where nothing was typed.

    Raises:
        InputError: If it is none.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError("--expires", text, "write it as 2030-01-31 or with T12:00+00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
