"""What came of asking each client: the part of a run's journal that single answers write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from intarsia_client.errors import InputError, IntegrityError, RefusedUpdate

from intarsia_platform.registry import rounds as steps
from intarsia_platform.registry import runs
from intarsia_platform.registry.history import RunHistory
from intarsia_platform.registry.participations import (
    accept_participation,
    insert_refusal,
    open_unanswered,
    require_participant,
    settle,
)
from intarsia_platform.registry.privacy_ledger import record_spend
from intarsia_platform.registry.rows import PrivacySpendRow
from intarsia_platform.registry.store import is_digest


class RunAnswers(RunHistory):
    """One run's answers; :class:`~intarsia_platform.registry.journal.RunJournal` adds the steps.

    Formal guarantee: as the journal's, one transaction a call.

    Args:
        database: The registry's database.
        run_id: The run.
    """

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
