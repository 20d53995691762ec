"""What each client was planned to train: lines, a table and rows for the page."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from intarsia_platform.planning.client_plan import ClientPlan, RankPlan
from intarsia_platform.reporting.measures import (
    MISSING,
    THIN_SPACE,
    bytes_text,
    duration_text,
    evenly,
    printable,
    share_text,
)
from intarsia_platform.reporting.tables import MOST_ROWS, titled_table

HEADINGS = ("rank", "modules", "energy", "memory", "up", "down", "round")


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One client's plan, for people.

    Args:
        client: Its name.
        cells: Under each of :data:`HEADINGS`.
    """

    client: str
    cells: tuple[str, ...]


def plan_title(plan: RankPlan) -> str:
    """What a plan is, such as ``"Planned from round 1, for rounds of 12 s"``."""
    until = "" if plan.round_seconds is None else f", for rounds of {_time(plan.round_seconds)}"
    return f"Planned from round {plan.round}{until}"


def plan_rows(plan: RankPlan, most: int = MOST_ROWS) -> list[PlanRow]:
    """The clients of a plan, by rank and energy, the largest first.

    Args:
        plan: The plan.
        most: How many rows at most, evenly chosen.

    Returns:
        The rows.
    """
    ordered = sorted(plan.clients, key=lambda one: (-one.rank, -one.energy, one.client))
    return [
        PlanRow(client=client.client, cells=_cells(client, plan.modules))
        for client in evenly(ordered, most)
    ]


def plan_table(plan: RankPlan) -> Table:
    """A plan for the terminal.

    Args:
        plan: The plan.

    Returns:
        A table with one row a client, at most :data:`~.tables.MOST_ROWS`, evenly chosen.
    """
    table = titled_table(plan_title(plan))
    rows = plan_rows(plan)
    if len(rows) < len(plan.clients):
        table.caption = f"{len(rows)} of {len(plan.clients)} clients, evenly from most to least"
    table.add_column("client", overflow="fold", min_width=min(20, max(len(r.client) for r in rows)))
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(printable(row.client)), *(Text(cell) for cell in row.cells))
    return table


def plan_lines(plan: RankPlan, most: int) -> list[str]:
    """A plan where lines are all there is.

    Args:
        plan: The plan.
        most: How many clients at most, evenly chosen.

    Returns:
        What it is, and a line a client.
    """
    lines = [plan_title(plan).lower()]
    for row in plan_rows(plan, most):
        named = dict(zip(HEADINGS, row.cells, strict=True))
        lines.append(
            f"{printable(row.client)}: rank {named['rank']}, {named['modules']} modules, "
            f"{named['energy']} of the energy, {named['memory']}, {named['round']} a round"
        )
    return lines


def _cells(client: ClientPlan, modules: int) -> tuple[str, ...]:
    if not client.fits:
        return (MISSING,) * len(HEADINGS)
    return (
        str(client.rank),
        f"{len(client.target_modules)} of {modules}",
        share_text(client.energy),
        bytes_text(client.memory_bytes),
        bytes_text(client.bytes_up),
        bytes_text(client.bytes_down),
        MISSING if client.seconds is None else _time(client.seconds),
    )


def _time(seconds: float) -> str:
    """A duration; short ones with their digits."""
    return duration_text(seconds) if seconds >= 10 else f"{seconds:.2g}{THIN_SPACE}s"
