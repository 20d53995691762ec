"""``intarsia aggregate``: PEFT directories in, one PEFT directory out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.output import check_json_place, facts, present, table
from intarsia_platform.cli.settings import IntarsiaCommand, Settings, settings_of

if TYPE_CHECKING:
    from intarsia_aggregators.offline import OfflineAggregate
    from intarsia_client.wire import Adapter

DEFAULT_METHOD = "ledger"
MOST_MODULES = 10

_WEIGHT = "--weight"


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
    _check_method(method)
    _aggregate(settings, directories or [], out, weights or [], rank, method)


def _list(settings: Settings) -> None:
    from intarsia_aggregators.catalog import CATALOG

    names = ("name", "exact", "mixed_ranks", "summary", "source")
    methods = [{name: getattr(entry, name) for name in names} for entry in CATALOG]
    words = {True: "yes", False: "no"}
    rows = [
        [words[value] if isinstance(value, bool) else value for value in entry.values()]
        for entry in methods
    ]
    headings = [name.replace("_", " ") for name in names]
    present(settings, {"methods": methods}, table(headings, rows))


def _check_method(name: str) -> None:
    from intarsia_aggregators.catalog import find_method

    if find_method(name).name != DEFAULT_METHOD:
        raise InputError(
            "--method", f"{name} needs a federation's rounds", f"use {DEFAULT_METHOD} for folders"
        )


def _aggregate(
    settings: Settings,
    directories: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    rank: int | None,
    method: str,
) -> None:
    from intarsia_aggregators.offline import aggregate_adapters
    from intarsia_client.peft_files import (
        adapter_digest,
        encode_adapter,
        read_adapter,
        write_encoded,
    )

    adapters = [read_adapter(directory) for directory in directories]
    result = aggregate_adapters(adapters, weights=weights, rank=rank)
    encoded = encode_adapter(result.adapter)
    manifest: dict[str, Any] = {
        "format_version": 1,
        "kind": "aggregate",
        "digest": encoded.digest,
        "base": result.adapter.base,
        "task": result.adapter.task,
        "method": method,
        "parents": [adapter_digest(adapter) for adapter in adapters],
        "weights": list(result.weights),
        "rank": result.adapter.rank,
        "cut": result.cut,
    }
    write_encoded(out, encoded, manifest=manifest)
    total = _total_cut(result)
    summary = {**manifest, "path": str(out.absolute()), "cut_total": total}
    present(settings, summary, *_tables(directories, adapters, result, summary))


def _total_cut(result: OfflineAggregate) -> float:
    """Share of all modules' squared norm that was cut, from what each kept and its own share."""
    from intarsia_aggregators.factors import product_norm

    kept = {name: product_norm(factors) ** 2 for name, factors in result.adapter.modules.items()}
    whole = {name: kept[name] / (1.0 - cut) for name, cut in result.cut.items() if cut < 1.0}
    everything = sum(whole.values())
    return sum(whole[name] * result.cut[name] for name in whole) / everything if everything else 0.0


def _tables(
    directories: Sequence[Path],
    adapters: Sequence[Adapter],
    result: OfflineAggregate,
    summary: dict[str, Any],
) -> list[Any]:
    rows = zip(directories, adapters, result.weights, strict=True)
    parts = [
        table(
            ["adapter", "rank", "weight"],
            [(directory, adapter.rank, f"{weight:.4g}") for directory, adapter, weight in rows],
            right="rank weight",
        ),
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
    cut = sorted(result.cut.items(), key=lambda item: (-item[1], item[0]))
    largest = [(name, _share(share)) for name, share in cut[:MOST_MODULES] if share > 0.0]
    if largest:
        parts += ["", table([f"module, {len(largest)} of {len(cut)}", "cut"], largest, right="cut")]
    return parts


def _share(share: float) -> str:
    return "0, the sum is exact" if share == 0.0 else f"{100.0 * share:.3g} %"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
