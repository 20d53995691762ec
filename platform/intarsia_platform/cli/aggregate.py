"""``intarsia aggregate``: PEFT directories in, one PEFT directory out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.counted_progress import counted_progress
from intarsia_platform.cli.output import check_json_place, facts, present, table
from intarsia_platform.cli.settings import IntarsiaCommand, Settings, settings_of

if TYPE_CHECKING:
    from intarsia_client.wire import Adapter

DEFAULT_METHOD = "ledger"
MOST_MODULES = 10

_WEIGHT = "--weight"
_LISTED = (
    "name", "exact", "mixed_ranks", "linear", "adds_deltas", "starts", "upload_cost",
    "download_cost", "summary", "source",
)  # fmt: skip


class AggregateCommand(IntarsiaCommand):
    """Lets all weights follow one ``--weight``, as in ``--weight 1 2 3``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the option before each of its numbers, then read the arguments.

        Args:
            ctx: The command's context.
            args: The words of the command line.

        Returns:
            The words that were left over.
        """
        return super().parse_args(ctx, one_weight_each(args))


def one_weight_each(words: Sequence[str]) -> list[str]:
    """Repeat ``--weight`` before every number that follows it.

    Args:
        words: The words of a command line.

    Returns:
        The words, in which each ``--weight`` has one number; a number that a folder is called by
        stays a folder.
    """
    found: list[str] = []
    follows = takes_next = False
    for word in words:
        if takes_next:
            takes_next = False
        elif word == _WEIGHT or word.startswith(f"{_WEIGHT}="):
            follows, takes_next = True, word == _WEIGHT
        elif follows and _is_number(word) and not Path(word).exists():
            found.append(_WEIGHT)
        else:
            follows = False
        found.append(word)
    return found


def aggregate_command(
    context: typer.Context,
    directories: Annotated[list[Path] | None, typer.Argument(metavar="DIR...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The PEFT folder to make.")
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option(
            _WEIGHT,
            metavar="W...",
            help="One number a folder, in their order; equal by default, divided by their sum.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="K",
            help="Keep the best K directions of each module; without it the sum is exact.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="A name from --list.")
    ] = DEFAULT_METHOD,
    list_methods: Annotated[bool, typer.Option("--list", help="Show the methods and end.")] = False,
) -> None:
    """Sum adapters of one base.

    Args:
        context: The command's context.
        directories: The adapters' folders.
        out: The folder to make.
        weights: One weight each, or none.
        rank: None for the exact sum, else the rank to keep.
        method: The aggregation method.
        list_methods: Whether only to show the methods.

    Raises:
        InputError: If an adapter cannot be read, or the adapters or weights do not fit together.
        IntegrityError: If an adapter's file is damaged.
        StorageError: If the folder cannot be written.
    """
    settings = settings_of(context)
    if list_methods:
        _list(settings)
        return
    if out is None:
        raise InputError("--out", "missing", "name the folder to make")
    check_json_place(settings)
    _aggregate(settings, directories or [], out, weights or [], rank, method)


def _list(settings: Settings) -> None:
    from intarsia_aggregators.catalog import CATALOG

    methods = [{name: getattr(entry, name) for name in _LISTED} for entry in CATALOG]
    rows = [[_cell(value) for value in method.values()] for method in methods]
    headings = [name.replace("_", " ") for name in _LISTED]
    present(settings, {"methods": methods}, table(headings, rows))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _aggregate(
    settings: Settings,
    directories: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    rank: int | None,
    method: str,
) -> None:
    from intarsia_aggregators.offline import OfflineSum, write_sum
    from intarsia_client.files import atomic_directory, write_bytes
    from intarsia_client.opened import module_layouts, open_adapter

    adapters = [open_adapter(directory) for directory in directories]
    labels = [str(directory) for directory in directories]
    whole = OfflineSum(adapters, labels=labels, weights=weights, rank=rank, method=method)
    with atomic_directory(out) as folder:
        with counted_progress("aggregating", "modules") as tell:
            report = write_sum(whole, folder, tell)
        manifest: dict[str, Any] = {
            "format_version": 1,
            "kind": "aggregate",
            "digest": report.digest,
            "base": whole.like.base,
            "task": whole.like.task,
            "method": method,
            "parents": _digests(directories, adapters),
            "weights": list(whole.weights),
            "rank": report.rank,
            "cut": report.cut,
        }
        text = json.dumps(manifest, indent=2, sort_keys=True)
        write_bytes(folder / "intarsia.json", text.encode() + b"\n")
    summary = {**manifest, "path": str(out.absolute()), "cut_total": report.cut_total}
    ranks = [
        max(layout.rank for layout in module_layouts(adapter).values()) for adapter in adapters
    ]
    present(
        settings, summary, *_tables(list(zip(labels, ranks, whole.weights, strict=True)), summary)
    )


def _digests(directories: Sequence[Path], adapters: Sequence[Adapter]) -> list[str]:
    """The parents' names in the registry, each of which takes another reading of its files."""
    from intarsia_client.errors import IntegrityError
    from intarsia_client.written import opened_digest

    digests = []
    with counted_progress("naming the adapters", "adapters") as tell:
        for directory, adapter in zip(directories, adapters, strict=True):
            try:
                digests.append(opened_digest(adapter))
            except (InputError, IntegrityError) as error:
                thing = f"{directory}: {error.thing}"
                raise type(error)(thing, error.value, error.remedy) from None
            tell(len(digests), len(adapters))
    return digests


def _tables(sources: Sequence[tuple[str, int, float]], summary: dict[str, Any]) -> list[Any]:
    rows = [(label, rank, f"{weight:.4g}") for label, rank, weight in sources]
    parts = [
        table(["adapter", "rank", "weight"], rows, right="rank weight"),
        "",
        facts(
            {
                "path": summary["path"],
                "digest": summary["digest"],
                "rank": summary["rank"],
                "energy cut": _share(summary["cut_total"]),
            }
        ),
    ]
    cut = sorted(summary["cut"].items(), key=lambda item: (-item[1], item[0]))
    largest = [(name, _share(share)) for name, share in cut[:MOST_MODULES] if share > 0.0]
    if largest:
        parts += ["", table([f"module, {len(largest)} of {len(cut)}", "cut"], largest, right="cut")]
    return parts


def _share(share: float | None) -> str:
    if share is None:
        return "not known, a mean of factors is not the sum of the products"
    return "0, the sum is exact" if share == 0.0 else f"{100.0 * share:.3g} %"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
