"""``intarsia runs``: the federations of a home, the interrupted ones too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.output import facts, present, short_digest, table
from intarsia_platform.cli.registry import open_registry
from intarsia_platform.cli.settings import IntarsiaCommand, command_group, settings_of

if TYPE_CHECKING:
    from intarsia_platform.registry.database import Database
    from intarsia_platform.registry.history import RunHistory
    from intarsia_platform.registry.rows import RoundRow, RunRow
    from intarsia_platform.results import RoundResult

app = command_group()


@app.command("list", cls=IntarsiaCommand, help="List all runs, the oldest first.")
def list_command(context: typer.Context) -> None:
    """List the runs with the rounds that are finished.

    Args:
        context: The command's context.
    """
    from intarsia_platform.registry.history import RunHistory
    from intarsia_platform.registry.runs import list_runs

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        found = [
            (run, RunHistory(registry.database, run.id).published_rounds())
            for run in list_runs(registry.database)
        ]
    rows = [
        (
            run.id,
            run.name,
            run.status,
            f"{len(published)} of {run.rounds}",
            short_digest(_last(published)),
            _moment(run),
        )
        for run, published in found
    ]
    headings = ["run", "name", "status", "rounds", "adapter", "begun"]
    mapping = {"runs": [_run_mapping(run, published) for run, published in found]}
    present(settings, mapping, table(headings, rows))


@app.command(
    "show",
    cls=IntarsiaCommand,
    help="Show one run and its finished rounds. RUN is its identifier or its number.",
)
def show_command(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="RUN")],
) -> None:
    """Show one run.

    Args:
        context: The command's context.
        reference: Which one.
    """
    from intarsia_client.assignment import PrivacyParameters

    from intarsia_platform.registry.journal import RunJournal
    from intarsia_platform.registry.privacy_ledger import PrivacyLedger
    from intarsia_platform.simulation.round_results import published_results

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        run = _find(registry.database, reference)
        journal = RunJournal(registry.database, run.id)
        published = journal.published_rounds()
        privacy = PrivacyParameters(**run.config.get("privacy", {}))
        results = published_results(journal, PrivacyLedger(registry.database), privacy)
        open_round = _open_round(journal)
    digests = [row.result_digest for row in published]
    mapping = {
        **_run_mapping(run, published),
        "rounds": [
            {**result.as_mapping(), "adapter": digest}
            for result, digest in zip(results, digests, strict=True)
        ],
        "open_round": open_round,
        "configuration": dict(run.config),
    }
    shown = {
        "run": run.id,
        "name": run.name,
        "status": run.status,
        "begun": _moment(run),
        "rounds": f"{len(published)} of {run.rounds}",
        "open round": _in_words(open_round),
        "seed": run.seed,
        "base": run.base_digest,
    }
    present(settings, mapping, facts(shown), "", _rounds_table(results, digests))


def _find(database: Database, reference: str) -> RunRow:
    from intarsia_platform.registry.runs import list_runs

    for run in list_runs(database):
        if reference in (run.id, str(run.number)):
            return run
    raise InputError("run", reference, "see `intarsia runs list`")


def _last(published: Sequence[RoundRow]) -> str | None:
    return published[-1].result_digest if published else None


def _moment(run: RunRow) -> str:
    return f"{run.created_at:%Y-%m-%d %H:%M:%S} UTC"


def _run_mapping(run: RunRow, published: Sequence[RoundRow]) -> dict[str, Any]:
    return {
        "run": run.id,
        "number": run.number,
        "name": run.name,
        "status": run.status,
        "created_at": run.created_at.isoformat(),
        "seed": run.seed,
        "base_digest": run.base_digest,
        "rounds_asked": run.rounds,
        "rounds_finished": len(published),
        "adapter": _last(published),
        "mlflow_run": run.mlflow_run_id,
    }


def _open_round(history: RunHistory) -> dict[str, Any] | None:
    """The round that is not finished: its state and how its clients stand."""
    row = history.current_round()
    if row is None:
        return None
    statuses = Counter(part.status for part in history.participations(row.number))
    return {"round": row.number, "state": row.state, "clients": dict(sorted(statuses.items()))}


def _in_words(open_round: dict[str, Any] | None) -> str | None:
    if open_round is None:
        return None
    clients = ", ".join(f"{count} {status}" for status, count in open_round["clients"].items())
    return f"{open_round['round']}, {open_round['state']}: {clients or 'no clients'}"


def _rounds_table(results: Sequence[RoundResult], digests: Sequence[str | None]) -> Any:
    from intarsia_platform.reporting.measures import (
        ACCURACY,
        LOSS,
        PERPLEXITY,
        duration_text,
        share_text,
    )

    measures = (LOSS, PERPLEXITY, ACCURACY)
    rows = [
        (
            result.round,
            *(measure.text(measure.of(result.test)) for measure in measures),
            result.accepted,
            len(result.refused),
            len(result.sat_out),
            result.rank,
            share_text(result.residual_energy),
            duration_text(result.seconds),
            short_digest(digest),
        )
        for result, digest in zip(results, digests, strict=True)
    ]
    numbers = ["round", "loss", "perplexity", "accuracy", "accepted", "refused", "absent", "rank"]
    headings = [*numbers, "held-back", "time"]
    return table([*headings, "adapter"], rows, right=" ".join(headings))
