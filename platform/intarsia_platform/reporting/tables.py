"""The same tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from intarsia_platform.reporting.measures import (
    MISSING,
    Measure,
    by_gain,
    bytes_text,
    duration_text,
    evenly,
    measure_of,
    printable,
    share_text,
)
from intarsia_platform.results import ClientEvaluation, RoundResult, SimulationResult

MOST_ROWS = 40


def clients_table(result: SimulationResult) -> Table:
    """The table that matters: each client's held-out records under three models.

    Args:
        result: The simulation.

    Returns:
        A table with one row a client, the best gain first; at most :data:`MOST_ROWS` rows, evenly
        chosen.
    """
    measure = measure_of(result)
    clients = by_gain(result.clients, measure)
    shown = evenly(clients, MOST_ROWS)
    table = titled_table(f"Held-out {measure.key} of each client")
    if len(shown) < len(clients):
        table.caption = f"{len(shown)} of {len(clients)} clients, evenly from best to worst gain"
    longest = max((len(client.client) for client in shown), default=0)
    table.add_column("client", overflow="fold", min_width=min(longest, 20))
    for heading in ("rank", "records", "base alone", "own adapter", "federated", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for client in shown:
        table.add_row(*_client_cells(client, measure))
    return table


def rounds_table(result: SimulationResult) -> Table:
    """One row a round: quality at the server, who took part, traffic and time.

    Args:
        result: The simulation.

    Returns:
        A table; the base alone stands in its first row. Columns that would be empty are left out.
    """
    measure = measure_of(result)
    table = titled_table(f"Test {measure.key} after each round")
    columns = _round_columns(result.rounds, measure)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("base", measure.text(measure.of(result.base)))
    for entry in result.rounds:
        table.add_row(*(text(entry) for text in columns.values()))
    return table


def titled_table(title: str) -> Table:
    """An empty table as all of the terminal's look.

    Args:
        title: What stands above it.

    Returns:
        The table, without columns.
    """
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _client_cells(client: ClientEvaluation, measure: Measure) -> list[Text]:
    base, own, federated = (
        measure.of(measured) for measured in (client.base, client.own, client.federated)
    )
    values = [value for value in (base, own, federated) if value is not None]
    best = (min if measure.lower_is_better else max)(values, default=None)
    cells = [
        Text(printable(client.client)),
        Text(str(client.rank)),
        Text(f"{client.train_examples:,}"),
    ]
    for value in (base, own, federated):
        is_best = value is not None and value == best
        cells.append(Text(measure.text(value), style="bold" if is_best else ""))
    gain = measure.gain(base, federated)
    style = "" if gain is None or gain == 0 else "green" if gain > 0 else "red"
    return [*cells, Text(measure.change(base, federated), style=style)]


def _round_columns(
    rounds: Sequence[RoundResult], measure: Measure
) -> dict[str, Callable[[RoundResult], str]]:
    """From each column's heading to what stands in it."""
    columns: dict[str, Callable[[RoundResult], str]] = {
        "round": lambda entry: str(entry.round),
        measure.key: lambda entry: measure.text(measure.of(entry.test)),
        "accepted": lambda entry: str(entry.accepted),
    }
    if any(entry.refused for entry in rounds):
        columns["refused"] = lambda entry: str(len(entry.refused))
    if any(entry.sat_out for entry in rounds):
        columns["sat\nout"] = lambda entry: str(len(entry.sat_out))
    if any(entry.residual_energy for entry in rounds):
        columns["held\nback"] = lambda entry: share_text(entry.residual_energy)
    columns |= {
        "up": lambda entry: bytes_text(entry.bytes_up),
        "down": lambda entry: bytes_text(entry.bytes_down),
        "time": lambda entry: duration_text(entry.seconds),
    }
    if any(entry.epsilon_max is not None for entry in rounds):
        columns["epsilon"] = lambda entry: (
            MISSING if entry.epsilon_max is None else f"{entry.epsilon_max:.2f}"
        )
    return columns
