"""What the page says in numbers and sentences, computed from a simulation's result."""

from __future__ import annotations

from dataclasses import dataclass

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
from intarsia_platform.results import ClientEvaluation, RuleDecision, SimulationResult

MOST_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the clients' table.

    Args:
        text: The number for people.
        change: Its change against the base alone, empty in the base's own column.
        heat: Strength of the tint between 0 and 1.
        kind: ``"better"``, ``"worse"`` or ``"plain"``: which tint.
        best: Whether it is the row's best.
    """

    text: str
    change: str = ""
    heat: float = 0.0
    kind: str = "plain"
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One row of the clients' table.

    Args:
        client: The client's name.
        rank: Its rank.
        train_examples: Records that it trains on, for people.
        test_examples: Records that it holds out, for people.
        cells: Base alone, own adapter where anyone has one, federated adapter.
        epsilon: Privacy that it has spent, for people; None where nobody spends any.
    """

    client: str
    rank: int
    train_examples: str
    test_examples: str
    cells: tuple[Cell, ...]
    epsilon: str | None


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The result in one glance.

    Args:
        measure: What was measured.
        before: It with the base alone.
        after: It with the federated adapter.
        sentence: What that means.
        worse: Whether the federated adapter is worse than the base alone.
    """

    measure: str
    before: str
    after: str
    sentence: str
    worse: bool = False


def headline(result: SimulationResult) -> Headline:
    """The result in one glance: the server's test if there is one, else the clients' mean.

    Args:
        result: The simulation.

    Returns:
        The numbers before and after, and a sentence on the share gained.
    """
    measure = measure_of(result)
    before, after = measure.of(result.base), measure.of(result.final)
    where = "on the server's held-out records"
    if before is None or after is None:
        pairs = [
            (one, other)
            for one, other in (
                (measure.of(client.base), measure.of(client.federated)) for client in result.clients
            )
            if one is not None and other is not None
        ]
        if not pairs:
            sentence = "No model was measured on held-out records."
            return Headline(measure=measure.key, before=MISSING, after=MISSING, sentence=sentence)
        before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        where = "on average over the clients' held-out records"
    return Headline(
        measure=measure.key,
        before=measure.text(before),
        after=measure.text(after),
        sentence=f"{_share_gained(measure, before, after)} {where}.",
        worse=measure.is_better(before, after),
    )


def comparison(result: SimulationResult) -> str:
    """How many clients the federated adapter serves better than the base and than their own.

    Args:
        result: The simulation.

    Returns:
        One or two sentences; empty where clients were not evaluated.
    """
    measure = measure_of(result)
    clauses = []
    for other, words in (("base", "the base alone"), ("own", "an adapter of their own")):
        better: list[str] = []
        worse: list[str] = []
        for client in result.clients:
            federated = measure.of(client.federated)
            value = measure.of(getattr(client, other))
            if federated is not None and value is not None:
                (better if measure.is_better(federated, value) else worse).append(client.client)
        total = len(better) + len(worse)
        if total:
            share = f"all {total:,}" if not worse else f"{len(better):,} of {total:,}"
            names = ", ".join(printable(client) for client in worse)
            names = f" (not {names})" if 0 < len(worse) <= 3 else ""
            clauses.append(f"better than {words} for {share} clients{names}")
    return f"The federated adapter does {', and '.join(clauses)}." if clauses else ""


def client_rows(result: SimulationResult, measure: Measure) -> list[ClientRow]:
    """The table that matters, the most gained first.

    Args:
        result: The simulation.
        measure: The number to show.

    Returns:
        At most :data:`MOST_ROWS` rows, evenly chosen.
    """
    clients = evenly(by_gain(result.clients, measure), MOST_ROWS)
    with_own = any(measure.of(client.own) is not None for client in clients)
    gains = [
        abs(gain)
        for client in clients
        for other in (client.own, client.federated)
        if (gain := measure.gain(measure.of(client.base), measure.of(other))) is not None
    ]
    strongest = max(gains, default=0.0) or 1.0
    spent = _spent(result)
    return [
        ClientRow(
            client=client.client,
            rank=client.rank,
            train_examples=f"{client.train_examples:,}",
            test_examples=f"{client.test_examples:,}",
            cells=_cells(client, measure, strongest, with_own=with_own),
            epsilon=spent.get(client.client, MISSING) if spent else None,
        )
        for client in clients
    ]


def facts(result: SimulationResult) -> list[tuple[str, str]]:
    """The run's size, as pairs of a name and a number.

    Args:
        result: The simulation.

    Returns:
        Those that are known.
    """
    clients = {client.client: client.train_examples for client in result.clients}
    for entry in result.rounds:
        for client in entry.clients:
            clients.setdefault(client.client, client.number_of_examples)
    up = sum(entry.bytes_up for entry in result.rounds)
    known = [
        ("clients", f"{len(clients):,}" if clients else ""),
        ("rounds", f"{len(result.rounds):,}"),
        ("training records", f"{sum(clients.values()):,}" if clients else ""),
        ("rank of the adapter", str(result.adapter.rank)),
        ("sent by clients", bytes_text(up)),
        ("time", duration_text(result.seconds)),
    ]
    return [(name, value) for name, value in known if value]


def absent(result: SimulationResult) -> list[tuple[int, str, str, str]]:
    """Clients that had no part in a round.

    Args:
        result: The simulation.

    Returns:
        Round, client, ``"refused"`` or ``"sat out"``, and the reason; at most :data:`MOST_ROWS`.
    """
    rows = [
        (entry.round, missing.client, kind, missing.reason)
        for entry in result.rounds
        for kind, group in (("refused", entry.refused), ("sat out", entry.sat_out))
        for missing in group
    ]
    return rows[:MOST_ROWS]


def decided(result: SimulationResult) -> list[tuple[int, str, str]]:
    """What the robust rule did to clients whose update was admitted.

    Args:
        result: The simulation.

    Returns:
        Round, client, and what in a few words; at most :data:`MOST_ROWS`.
    """
    rows = [
        (entry.round, decision.client, decision_text(decision))
        for entry in result.rounds
        for decision in entry.decisions
    ]
    return rows[:MOST_ROWS]


def decision_text(decision: RuleDecision) -> str:
    """One decision of a robust rule in a few words, such as ``"bounded: 12 % is left"``."""
    if decision.influence == 0:
        return "left out"
    return f"{printable(decision.outcome)}: {share_text(decision.influence)} is left"


def _share_gained(measure: Measure, before: float, after: float) -> str:
    if before == after:
        return "No change"
    if measure.key == "accuracy":
        points = 100 * abs(after - before)
        return f"{points:.1f} points {'gained' if after > before else 'lost'}"
    share = 100 * abs(after / before - 1) if before else 0.0
    digits = 0 if share >= 1 else 2
    return f"{share:.{digits}f}\u202f% {'lower' if after < before else 'higher'}"


def _cells(
    client: ClientEvaluation, measure: Measure, strongest: float, *, with_own: bool
) -> tuple[Cell, ...]:
    base = measure.of(client.base)
    own = [client.own] if with_own else []
    values = [measure.of(model) for model in (client.base, *own, client.federated)]
    present = [value for value in values if value is not None]
    best = (min if measure.lower_is_better else max)(present, default=None)
    cells = [Cell(text=measure.text(base), best=base is not None and base == best)]
    for value in values[1:]:
        gain = measure.gain(base, value)
        cells.append(
            Cell(
                text=measure.text(value),
                change="" if gain is None else measure.change(base, value),
                heat=0.0 if gain is None else round(abs(gain) / strongest, 3),
                kind="plain" if not gain else "better" if gain > 0 else "worse",
                best=value is not None and value == best,
            )
        )
    return tuple(cells)


def _spent(result: SimulationResult) -> dict[str, str]:
    return {
        client.client: f"{client.epsilon:.2f}"
        for entry in result.rounds
        for client in entry.clients
        if client.epsilon is not None
    }
