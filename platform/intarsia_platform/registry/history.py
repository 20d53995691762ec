"""The history of a run: everything that can be asked of it, nothing that changes it."""

from __future__ import annotations

from intarsia_platform.registry import participations, rounds, runs
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.rows import ParticipationRow, RefusalRow, RoundRow, RunRow


class RunHistory:
    """One run, read only.

    Args:
        database: The registry's database.
        run_id: The run.
    """

    def __init__(self, database: Database, run_id: str) -> None:
        """Keep both; nothing is read yet."""
        self._database = database
        self.run_id = run_id

    def run_row(self) -> RunRow:
        """The run as it is now; raises ``InputError`` where there is none."""
        with self._database.read() as connection:
            return runs.find_run(connection, self.run_id)

    def current_round(self) -> RoundRow | None:
        """The round to go on with: the newest one, unless it is published."""
        with self._database.read() as connection:
            row = rounds.newest_round(connection, self.run_id)
        return None if row is None or row.state == "published" else row

    def round(self, number: int) -> RoundRow:
        """One round; raises ``IntegrityError`` where it is not planned."""
        with self._database.read() as connection:
            return rounds.find_round(connection, self.run_id, number)

    def published_rounds(self) -> list[RoundRow]:
        """All published rounds, by number."""
        with self._database.read() as connection:
            return rounds.list_published(connection, self.run_id)

    def participations(self, number: int) -> list[ParticipationRow]:
        """Everyone's part in a round, sorted by client."""
        with self._database.read() as connection:
            return participations.list_participations(connection, self.run_id, number)

    def refusals(self, number: int) -> list[RefusalRow]:
        """Every message that was turned away in a round, duplicates and strangers included."""
        with self._database.read() as connection:
            return participations.list_refusals(connection, self.run_id, number)
