"""What the round loop tells whoever keeps a view of a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from intarsia_platform.results import Measured, RoundResult

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """What the round loop tells whoever keeps a view of it; no method raises or waits for long."""

    @property
    def run_id(self) -> str | None:
        """MLflow's name of the run, None until it is open."""

    def prepare_in_background(self) -> None:
        """Begin whatever takes time, without waiting for it."""

    def start(
        self,
        *,
        run_name: str,
        configuration: Mapping[str, Any],
        tags: Mapping[str, str],
        existing_run_id: str | None = None,
    ) -> None:
        """Open the federation's run, or continue it."""

    def log_base(self, base: Measured) -> None:
        """Note the base model alone as step 0."""

    def log_round(self, result: RoundResult) -> None:
        """Note a finished round, once however often it is told."""

    def finish(self, status: RunStatus, artifacts: Sequence[Path] = ()) -> None:
        """Close the run with its files and folders."""


class NullTracker:
    """Keeps nothing: tracking is off."""

    run_id: None = None

    def __enter__(self) -> Self:
        """Enter without effect."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave without effect."""

    def prepare_in_background(self) -> None:
        """Do nothing."""

    def start(
        self,
        *,
        run_name: str,
        configuration: Mapping[str, Any],
        tags: Mapping[str, str],
        existing_run_id: str | None = None,
    ) -> None:
        """Do nothing."""

    def log_base(self, base: Measured) -> None:
        """Do nothing."""

    def log_round(self, result: RoundResult) -> None:
        """Do nothing."""

    def finish(self, status: RunStatus, artifacts: Sequence[Path] = ()) -> None:
        """Do nothing."""
