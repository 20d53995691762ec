"""The journal of a run: the state of every round, each step one transaction.

    planned -> sent -> collecting -> aggregating -> published

After a kill, the newest round that is not published says where to go on. A round that was sent or
collecting may be sent again to those who have not answered; what was accepted stays accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intarsia_client.errors import IntegrityError

from intarsia_platform.registry import rounds as steps
from intarsia_platform.registry import runs
from intarsia_platform.registry.adapters import insert_adapter
from intarsia_platform.registry.answers import RunAnswers
from intarsia_platform.registry.client_states import ClientStates
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.participations import (
    add_bytes_down,
    insert_plan,
    settle_open_as_late,
)
from intarsia_platform.registry.rows import (
    AdapterVersion,
    PlannedParticipation,
    RoundRow,
    RunStatus,
)
from intarsia_platform.registry.runs import list_runs

__all__ = [
    "ClientStates",
    "PlannedParticipation",
    "RunJournal",
    "create_run",
    "latest_unfinished",
    "list_runs",
]


def create_run(
    database: Database,
    *,
    name: str,
    config: Mapping[str, Any],
    seed: int,
    rounds: int,
    base_digest: str,
) -> RunJournal:
    """Begin a run; arguments and errors as :func:`~intarsia_platform.registry.runs.insert_run`.

    Returns:
        Its journal, without rounds.
    """
    run_id = runs.insert_run(
        database, name=name, config=config, seed=seed, rounds=rounds, base_digest=base_digest
    )
    return RunJournal(database, run_id)


def latest_unfinished(database: Database, config_digest: str | None = None) -> RunJournal | None:
    """The newest run that is not finished: running (its process may be dead), interrupted, failed.

    Args:
        database: The registry's database.
        config_digest: Only runs of this configuration; see
            :func:`~intarsia_platform.registry.runs.digest_of_config`.

    Returns:
        Its journal, or None where there is none.
    """
    for run in reversed(list_runs(database)):
        if run.status != "finished" and config_digest in (None, run.config_digest):
            return RunJournal(database, run.id)
    return None


class RunJournal(RunAnswers):
    """One run's rounds, to be moved on; what single clients answer is in :class:`RunAnswers`.

    Formal guarantee: each method that changes something does so in one transaction. A process that
    is killed at any point leaves the state before a call or the state after it.

    Args:
        database: The registry's database.
        run_id: The run.
    """

    def set_status(self, status: RunStatus) -> None:
        """Set the run's status; see :func:`~intarsia_platform.registry.runs.change_status`."""
        runs.change_status(self._database, self.run_id, status)

    def set_mlflow_run(self, mlflow_run_id: str | None) -> None:
        """Note which MLflow run mirrors this one."""
        runs.name_mlflow_run(self._database, self.run_id, mlflow_run_id)

    def plan_round(
        self, number: int, start_digest: str, participations: Sequence[PlannedParticipation]
    ) -> RoundRow:
        """Write down what a round starts from and who is asked.

        Args:
            number: One more than the newest round, which must be published; 1 in a new run.
            start_digest: Digest of what the clients start from. One that is not known yet becomes
                an artefact, made of the round before or, in round 1, of the base model.
            participations: One entry a client.

        Returns:
            The round, state ``"planned"``.

        Raises:
            InputError: If the plan names a client twice or holds what JSON does not.
            IntegrityError: If this round cannot be planned now.
        """
        with self._database.begin() as connection:
            run = runs.find_run(connection, self.run_id)
            row = steps.insert_round(connection, run, number, start_digest)
            insert_plan(connection, self.run_id, number, participations)
            return row

    def mark_sent(self, number: int, bytes_down: Mapping[str, int]) -> RoundRow:
        """Note that the round's messages are out; after a kill, that they are out again.

        Args:
            number: The round.
            bytes_down: From client to bytes sent to it now; added to what it was sent before.

        Returns:
            The round.

        Raises:
            IntegrityError: If the round is not at a state that may be sent, or a client not in it.
        """
        with self._database.begin() as connection:
            row = steps.step(connection, self.run_id, number, "sent")
            add_bytes_down(connection, self.run_id, number, bytes_down)
            return row

    def mark_collecting(self, number: int) -> RoundRow:
        """Note that answers are awaited; raises ``IntegrityError`` unless the round is sent."""
        with self._database.begin() as connection:
            return steps.step(connection, self.run_id, number, "collecting")

    def mark_aggregating(self, number: int) -> RoundRow:
        """Close the round to answers; whoever has not answered is late.

        Args:
            number: The round.

        Returns:
            The round.

        Raises:
            IntegrityError: Unless the round is collecting.
        """
        with self._database.begin() as connection:
            row = steps.step(connection, self.run_id, number, "aggregating")
            settle_open_as_late(connection, self.run_id, number)
            return row

    def publish(
        self,
        number: int,
        *,
        result_digest: str,
        metrics: Mapping[str, Any],
        adapter: AdapterVersion | None = None,
        parents: Sequence[str] | None = None,
        aggregate_digest: str | None = None,
        aggregate_size: int | None = None,
    ) -> RoundRow:
        """End the round: its result, artefacts, lineage and the adapter's row at once.

        Args:
            number: The round, aggregating.
            result_digest: Digest of the version that came of it.
            metrics: Finite numbers about the round; None where one does not apply.
            adapter: The version as ``AdapterRegistry.prepare`` made it, of the same digest.
            parents: Digests of what it was made of; None takes every accepted update and what the
                round started from.
            aggregate_digest: Digest of the exact aggregate, where it is kept apart.
            aggregate_size: Its bytes.

        Returns:
            The round, state ``"published"``. Publishing the same digests again changes nothing.

        Raises:
            InputError: If a metric is not finite, or the adapter's name is taken.
            IntegrityError: If the round is not aggregating, was published with another digest, the
                adapter is another one, or a parent is not known.
        """
        described = runs.checked_json(f"metrics of round {number}", metrics)
        if adapter is not None and adapter.digest != result_digest:
            raise IntegrityError(
                f"adapter of round {number}",
                f"is {adapter.digest}, not {result_digest}",
                "publish the adapter that is the result",
            )
        with self._database.begin() as connection:
            row = steps.find_round(connection, self.run_id, number, for_update=True)
            results = (result_digest, aggregate_digest)
            if row.state == "published" and results == (row.result_digest, row.aggregate_digest):
                return row
            row = steps.step(
                connection,
                self.run_id,
                number,
                "published",
                result_digest=result_digest,
                aggregate_digest=aggregate_digest,
                metrics=described,
            )
            if adapter is not None:
                insert_adapter(connection, adapter)
            steps.record_result(connection, row, parents, aggregate_size)
            return row
