"""The same tables for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from intarsia_platform.reporting.measures import (
    Measure,
    by_gain,
    bytes_text,
    duration_text,
    evenly,
    measure_of,
    printable,
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
    table = Table(title=f"Held-out {measure.key} of each client", title_justify="left")
    if len(shown) < len(clients):
        table.caption = f"{len(shown)} of {len(clients)} clients, evenly from best to worst gain"
    table.add_column("client", overflow="fold")
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
        A table; the base alone stands in its first row.
    """
    measure = measure_of(result)
    private = any(entry.epsilon_max is not None for entry in result.rounds)
    table = Table(title="Rounds", title_justify="left")
    headings = ["round", f"test {measure.key}", "accepted", "refused", "sat out", "up", "down"]
    for heading in [*headings, "time", *(["largest epsilon"] if private else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("base", measure.text(measure.of(result.base)))
    for entry in result.rounds:
        table.add_row(*_round_cells(entry, measure, private=private))
    return table


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


def _round_cells(entry: RoundResult, measure: Measure, *, private: bool) -> list[str]:
    cells = [
        str(entry.round),
        measure.text(measure.of(entry.test)),
        str(entry.accepted),
        str(len(entry.refused)),
        str(len(entry.sat_out)),
        bytes_text(entry.bytes_up),
        bytes_text(entry.bytes_down),
        duration_text(entry.seconds),
    ]
    if private:
        cells.append("–" if entry.epsilon_max is None else f"{entry.epsilon_max:.2f}")
    return cells
