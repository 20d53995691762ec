"""The journal of a run: the state of every round, each step one transaction.

    planned -> sent -> collecting -> aggregating -> published

After a kill, the newest round that is not published says where to go on. A round that was sent or
collecting may be sent again to those who have not answered; what was accepted stays accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from intarsia_client.errors import InputError, IntegrityError, RefusedUpdate

from intarsia_platform.registry import rounds as steps
from intarsia_platform.registry import runs
from intarsia_platform.registry.adapters import insert_adapter
from intarsia_platform.registry.client_states import ClientStates
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.history import RunHistory
from intarsia_platform.registry.participations import (
    accept_participation,
    add_bytes_down,
    insert_plan,
    insert_refusal,
    open_unanswered,
    require_participant,
    settle,
    settle_open_as_late,
)
from intarsia_platform.registry.privacy_ledger import record_spend
from intarsia_platform.registry.rows import (
    AdapterVersion,
    PlannedParticipation,
    PrivacySpendRow,
    RoundRow,
    RunStatus,
)
from intarsia_platform.registry.runs import list_runs
from intarsia_platform.registry.store import is_digest

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


class RunJournal(RunHistory):
    """One run's rounds, to be moved on.

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

    def accept(
        self,
        number: int,
        client: str,
        *,
        update_digest: str,
        nonce: str,
        number_of_examples: int,
        bytes_up: int,
        metrics: Mapping[str, Any],
        shard_digest: str | None = None,
        spend: PrivacySpendRow | None = None,
        update_size: int | None = None,
    ) -> None:
        """Count an update in: participation, nonce, privacy spend, artefacts and lineage at once.

        The update's bytes must be in the store already: an update counts only when it is on disk.

        Args:
            number: The round, collecting.
            client: Who sent it.
            update_digest: Digest of the update, over its manifest too, so that no two are equal.
            nonce: The one-time word that the client was given.
            number_of_examples: Records it trained on.
            bytes_up: Bytes of the message.
            metrics: Finite numbers it reported.
            shard_digest: Digest of its records.
            spend: What it spent in privacy, under its own name.
            update_size: Bytes of the update in the store; None takes ``bytes_up``.

        Raises:
            RefusedUpdate: ``"late"``, ``"replayed-nonce"``, ``"not-invited"``,
                ``"duplicate-client"``, ``"already-settled"`` or ``"malformed"``; nothing is
                written then.
            IntegrityError: If the round is not sent and collecting yet, or the privacy spend
                contradicts one that was recorded before.
        """
        thing = f"update of {client} in round {number}"
        if spend is not None and spend.client != client:
            raise IntegrityError(thing, f"spends for {spend.client}", "record its own spend")
        values = _checked_report(thing, number_of_examples, shard_digest, metrics)
        values |= {"update_digest": update_digest, "bytes_up": bytes_up}
        size = bytes_up if update_size is None else update_size
        with self._database.begin() as connection:
            row = steps.find_round(connection, self.run_id, number, for_update=True)
            if row.state in ("aggregating", "published"):
                raise RefusedUpdate("late", thing, f"is {row.state}", "answer before the deadline")
            if row.state != "collecting":
                raise steps.illegal(self.run_id, number, row.state, "accepting updates")
            accept_participation(
                connection, self.run_id, number, client, nonce=nonce, values=values
            )
            if spend is not None:
                record_spend(connection, spend)
            steps.record_update(connection, row, client, update_digest, size, shard_digest)

    def refuse(
        self,
        number: int,
        client: str,
        reason: str,
        detail: str,
        bytes_up: int,
        *,
        spend: PrivacySpendRow | None = None,
    ) -> bool:
        """Note that a message was turned away, whoever it came from.

        Args:
            number: The round that is open, sent or later.
            client: Who it said it was from; need not be in the round.
            reason: The short stable word, such as ``"not-finite"``.
            detail: The line for a person.
            bytes_up: Bytes of the message.
            spend: What the client spent on it: training on records costs privacy whether or not
                the update is used. Counted only if this settles the client's part.

        Returns:
            Whether it settles the client's part; an update accepted before stays accepted.

        Raises:
            IntegrityError: If the round is not sent yet.
        """
        with self._database.begin() as connection:
            steps.require_sent(connection, self.run_id, number, "refusing updates")
            insert_refusal(connection, self.run_id, number, client, reason, detail, bytes_up)
            return settle(
                connection,
                self.run_id,
                number,
                client,
                "refused",
                reason=reason,
                detail=detail,
                bytes_up=bytes_up,
                spend=spend,
            )

    def fail(self, number: int, client: str, reason: str, *, detail: str = "") -> bool:
        """Note that a client could not be reached or reported an error.

        Args:
            number: The round, planned or later.
            client: A client of the round.
            reason: A short word.
            detail: The line for a person.

        Returns:
            Whether this settles its part; what was settled before stands.

        Raises:
            IntegrityError: If the client is not in the round.
        """
        return self._without_update(number, client, "failed", reason, detail)

    def sit_out(self, number: int, client: str, reason: str, *, detail: str = "") -> bool:
        """Note that a client that was asked sits the round out, such as for its privacy budget.

        Args:
            number: The round, planned or later.
            client: A client of the round.
            reason: A short word.
            detail: The line for a person.

        Returns:
            Whether this settles its part; what was settled before stands.

        Raises:
            IntegrityError: If the client is not in the round.
        """
        return self._without_update(number, client, "sat-out", reason, detail)

    def ask_again(self, number: int) -> int:
        """Open the parts of clients that failed or were late, for a round that is taken up again.

        Args:
            number: The round, sent or collecting.

        Returns:
            How many there are.

        Raises:
            IntegrityError: If the round is closed to answers.
        """
        with self._database.begin() as connection:
            row = steps.find_round(connection, self.run_id, number, for_update=True)
            if row.state not in ("sent", "collecting"):
                raise steps.illegal(self.run_id, number, row.state, "asking again")
            return open_unanswered(connection, self.run_id, number)

    def _without_update(
        self,
        number: int,
        client: str,
        status: Literal["failed", "sat-out"],
        reason: str,
        detail: str,
    ) -> bool:
        with self._database.begin() as connection:
            steps.find_round(connection, self.run_id, number, for_update=True)
            require_participant(connection, self.run_id, number, client)
            return settle(
                connection, self.run_id, number, client, status, reason=reason, detail=detail
            )

    def mark_late(
        self,
        number: int,
        client: str,
        *,
        bytes_up: int = 0,
        spend: PrivacySpendRow | None = None,
    ) -> bool:
        """Note that a client's answer came after the deadline, or not at all.

        Args:
            number: The round, sent or later.
            client: A client of the round.
            bytes_up: Bytes of what came.
            spend: As :meth:`refuse`.

        Returns:
            Whether this settles its part; what was settled before stands.

        Raises:
            IntegrityError: If the round is not sent yet, or the client not in it.
        """
        with self._database.begin() as connection:
            steps.require_sent(connection, self.run_id, number, "late answers")
            require_participant(connection, self.run_id, number, client)
            return settle(
                connection,
                self.run_id,
                number,
                client,
                "late",
                reason="after-deadline",
                bytes_up=bytes_up,
                spend=spend,
            )

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


def _checked_report(
    thing: str, number_of_examples: int, shard_digest: str | None, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """What a client says of its update, as what every database takes."""
    if not 0 <= number_of_examples < 2**63:
        raise RefusedUpdate("malformed", thing, "number of examples", "send a real count")
    if shard_digest is not None and not is_digest(shard_digest):
        raise RefusedUpdate("malformed", thing, "shard digest", "send sha256: and 64 digits")
    try:
        reported = runs.checked_json("metrics", metrics)
    except InputError as error:
        raise RefusedUpdate("malformed", thing, error.value, error.remedy) from None
    return {"number_of_examples": number_of_examples, "metrics": reported}
