"""Runs: one row a federation, with a number that people can say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest, canonical_json
from sqlalchemy import Connection, func, insert, select, update

from intarsia_platform.registry.database import Database, serialise
from intarsia_platform.registry.lineage import record_artefact
from intarsia_platform.registry.rows import RUN_STATUSES, RunRow, RunStatus
from intarsia_platform.registry.tables import RunTable


def checked_json(thing: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Make sure that a mapping can be written as JSON.

    Args:
        thing: What it is, for the error.
        value: The mapping.

    Returns:
        The mapping as a plain dictionary.

    Raises:
        InputError: If it holds NaN, an infinity or something that JSON has no form for.
    """
    try:
        canonical_json(dict(value))
    except (TypeError, ValueError) as error:
        remedy = "use finite numbers, strings, lists and null"
        raise InputError(thing, error, remedy) from None
    return dict(value)


def insert_run(
    database: Database,
    *,
    name: str,
    config: Mapping[str, Any],
    seed: int,
    rounds: int,
    base_digest: str,
) -> str:
    """Write a new run down, status ``"running"``, and its base model as an artefact.

    Args:
        database: The registry's database.
        name: What the person calls it.
        config: The whole configuration, as JSON values.
        seed: The seed everything random derives from.
        rounds: How many rounds are asked for.
        base_digest: Digest of the frozen base model.

    Returns:
        Its identifier: ``run-``, its number, and the beginning of the configuration's digest.

    Raises:
        InputError: If the configuration is not JSON.
        StorageError: If the database cannot be written.
    """
    config_digest = digest_of_config(config)
    with database.begin() as connection:
        serialise(connection, "runs")
        number = 1 + (connection.execute(select(func.max(RunTable.number))).scalar() or 0)
        run_id = f"run-{number:04d}-{config_digest.removeprefix('sha256:')[:8]}"
        record_artefact(connection, base_digest, "base")
        row = {
            "id": run_id,
            "number": number,
            "created_at": datetime.now(UTC),
            "name": name,
            "status": "running",
            "config": dict(config),
            "config_digest": config_digest,
            "seed": seed,
            "rounds": rounds,
            "base_digest": base_digest,
        }
        connection.execute(insert(RunTable).values(row))
    return run_id


def digest_of_config(config: Mapping[str, Any]) -> str:
    """Digest by which two runs of equal configuration know each other.

    Args:
        config: The configuration, as JSON values.

    Returns:
        ``"sha256:…"`` of its canonical JSON.

    Raises:
        InputError: If it is not JSON.
    """
    return bytes_digest(canonical_json(checked_json("configuration", config)))


def list_runs(database: Database) -> list[RunRow]:
    """All runs, the oldest first."""
    statement = select(RunTable).order_by(RunTable.number)
    with database.read() as connection:
        return [RunRow(**row._asdict()) for row in connection.execute(statement)]


def find_run(connection: Connection, run_id: str) -> RunRow:
    """One run.

    Args:
        connection: An open transaction.
        run_id: Its identifier.

    Returns:
        The run.

    Raises:
        InputError: If there is none of that identifier.
    """
    row = connection.execute(select(RunTable).where(RunTable.id == run_id)).one_or_none()
    if row is None:
        raise InputError("run", run_id, "name a run of this home")
    return RunRow(**row._asdict())


def change_status(database: Database, run_id: str, status: RunStatus) -> None:
    """Set a run's status.

    Args:
        database: The registry's database.
        run_id: The run.
        status: One of :data:`~intarsia_platform.registry.rows.RUN_STATUSES`.

    Raises:
        InputError: If the run or the status is not known.
        IntegrityError: If the run is finished and the status is another.
    """
    if status not in RUN_STATUSES:
        raise InputError("run status", status, f"use one of {', '.join(RUN_STATUSES)}")
    with database.begin() as connection:
        run = find_run(connection, run_id)
        if run.status == "finished" != status:
            raise IntegrityError(run_id, f"finished to {status}", "start a new run instead")
        connection.execute(update(RunTable).where(RunTable.id == run_id).values(status=status))


def name_mlflow_run(database: Database, run_id: str, mlflow_run_id: str | None) -> None:
    """Note which MLflow run mirrors a run.

    Args:
        database: The registry's database.
        run_id: The run.
        mlflow_run_id: MLflow's identifier, or None.

    Raises:
        InputError: If the run is not known.
    """
    with database.begin() as connection:
        find_run(connection, run_id)
        values = {"mlflow_run_id": mlflow_run_id}
        connection.execute(update(RunTable).where(RunTable.id == run_id).values(values))
