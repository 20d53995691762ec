"""Who watches a simulation."""

from __future__ import annotations

from typing import Protocol

from intarsia_platform.planning.client_plan import RankPlan
from intarsia_platform.results import RoundResult


class SimulationObserver(Protocol):
    """Is told what a simulation does, as it does it; a terminal's progress bar, for example."""

    def stage(self, text: str) -> None:
        """A stage of the work begins, such as "loading the base model"."""

    def run_begun(self, run_id: str, rounds: int, published: int) -> None:
        """The run is in the database; ``published`` of its ``rounds`` are done already."""

    def planned(self, plan: RankPlan) -> None:
        """From this plan's round on, clients train what it says."""

    def round_begun(self, number: int, cohort: int) -> None:
        """A round begins or goes on, with ``cohort`` clients asked."""

    def replied(self, number: int, client: str, status: str) -> None:
        """One client's reply was dealt with."""

    def round_published(self, result: RoundResult) -> None:
        """A round's result is in the registry."""

    def client_measured(self, done: int, total: int) -> None:
        """``done`` of ``total`` measurements on clients' held-out records have arrived."""

    def warned(self, line: str) -> None:
        """Something that a person should know and that stops nothing."""
