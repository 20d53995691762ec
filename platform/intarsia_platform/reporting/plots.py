"""The report's pictures, each drawn from a simulation's result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intarsia_platform.reporting.drawing import direct_labels, save_png, svg_of
from intarsia_platform.reporting.measures import (
    by_gain,
    bytes_text,
    evenly,
    measure_of,
)
from intarsia_platform.reporting.palette import FEDERATED, WORSE
from intarsia_platform.results import SimulationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLIENTS = 40
_WIDTH = 8.4


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture of the page.

    Args:
        svg: The ``<svg>`` element.
        caption: What to see in it, in one or two sentences.
    """

    svg: str
    caption: str


def clients_plot(result: SimulationResult) -> Plot | None:
    """Each client's held-out quality under base, own and federated adapter, one line a client.

    Args:
        result: The simulation.

    Returns:
        The plot, or None where no client was evaluated.
    """
    measure = measure_of(result)
    everyone = [client for client in result.clients if values_of(client, measure)]
    if not everyone:
        return None
    clients = evenly(by_gain(everyone, measure), MOST_CLIENTS)
    height = 0.95 + 0.29 * len(clients)
    label = f"Held-out {measure.key} of {len(clients)} clients under three models; the same " + (
        "numbers stand in the table."
    )
    better = "left" if measure.lower_is_better else "right"
    caption = f"Held-out {measure.key}; further {better} is better. The most gained stands on top."
    if len(clients) < len(everyone):
        caption += f" {len(clients)} of {len(everyone)} clients, evenly from best to worst gain."

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.19, 0.45 / height, 0.78, 1 - 0.8 / height))
        draw_dumbbells(axes, clients, measure)

    svg = svg_of(draw, name="clients", size=(_WIDTH, height), label=label)
    return Plot(svg=svg, caption=caption)


def learning_plot(result: SimulationResult) -> Plot | None:
    """Test quality by round, and the clients' training losses beside it where they report any.

    Args:
        result: The simulation.

    Returns:
        The plot, or None where there is nothing to draw.
    """
    measure = measure_of(result)
    tested = any(measure.of(entry.test) is not None for entry in result.rounds)
    losses = _train_losses(result)
    if not tested and not losses:
        return None
    parts, sentences = [], []
    if tested:
        last = measure.text(measure.of(result.final))
        sentences.append(
            f"Test {measure.key} at the server, {measure.text(measure.of(result.base))} with the "
            f"base alone and {last} after the last round."
        )
    if losses:
        sentences.append("Mean training loss that each client reports, in nats.")

    def draw(figure: Figure) -> None:
        panels = int(tested) + int(bool(losses))
        width = 0.88 if panels == 1 else 0.33
        if tested:
            parts.append(axes := figure.add_axes((0.065, 0.15, width, 0.7)))
            draw_learning(axes, result, measure)
        if losses:
            left = 0.065 if panels == 1 else 0.535
            parts.append(axes := figure.add_axes((left, 0.15, width - 0.02, 0.7)))
            draw_train_losses(axes, losses)

    caption = " ".join(sentences)
    return Plot(
        svg=svg_of(draw, name="learning", size=(_WIDTH, 3.1), label=caption), caption=caption
    )


def traffic_plot(result: SimulationResult) -> Plot | None:
    """Rank of each client, and bytes up and down of each round.

    Args:
        result: The simulation.

    Returns:
        The plot, or None before the first round.
    """
    if not result.rounds:
        return None
    ranks = evenly(sorted(_ranks(result).items(), key=lambda item: -item[1]), MOST_CLIENTS)
    up = sum(entry.bytes_up for entry in result.rounds)
    down = sum(entry.bytes_down for entry in result.rounds)
    caption = (
        f"The federated adapter has rank {result.adapter.rank}. Clients sent {bytes_text(up)} in "
        f"all and received {bytes_text(down)}."
    )
    height = max(2.4, 0.9 + 0.2 * len(ranks))

    def draw(figure: Figure) -> None:
        low, tall = 0.42 / height, 1 - 0.84 / height
        if ranks:
            draw_ranks(figure.add_axes((0.16, low, 0.28, tall)), ranks)
        draw_bytes(
            figure.add_axes((0.57, low, 0.4, tall) if ranks else (0.1, low, 0.86, tall)), result
        )

    return Plot(
        svg=svg_of(draw, name="traffic", size=(_WIDTH, height), label=caption), caption=caption
    )


def privacy_plot(result: SimulationResult) -> Plot | None:
    """Largest epsilon of any client after each round, under the budget.

    Args:
        result: The simulation.

    Returns:
        The plot, or None without differential privacy.
    """
    spent = [
        (entry.round, entry.epsilon_max) for entry in result.rounds if entry.epsilon_max is not None
    ]
    if not spent:
        return None
    privacy = result.configuration.get("privacy", {})
    budget, delta = privacy.get("epsilon"), privacy.get("delta")
    caption = f"The most that any client has spent is ε = {spent[-1][1]:.2f}"
    caption += f" at δ = {delta:g}" if isinstance(delta, float) else ""
    caption += f", of a budget of {budget:g}." if isinstance(budget, int | float) else "."

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.065, 0.18, 0.8, 0.64))
        axes.set_title("Privacy spent, ε")
        rounds, values = [0, *(number for number, _ in spent)], [0.0, *(each for _, each in spent)]
        axes.step(rounds, values, where="post", color=FEDERATED.light, linewidth=2)
        axes.plot(rounds[-1:], values[-1:], "o", color=FEDERATED.light, markersize=5)
        if isinstance(budget, int | float):
            axes.axhline(budget, color=WORSE.light, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        round_axis(axes, rounds[-1], first=0)
        named = [(values[-1], "spent", FEDERATED.light)]
        if isinstance(budget, int | float):
            named.append((float(budget), "budget", WORSE.light))
        direct_labels(axes, named)

    return Plot(
        svg=svg_of(draw, name="privacy", size=(_WIDTH, 2.3), label=caption), caption=caption
    )


def save_figure_png(result: SimulationResult, path: Path) -> None:
    """Write the one picture that tells a simulation: clients on the left, rounds on the right.

    Args:
        result: The simulation.
        path: Where the PNG shall be.

    Raises:
        StorageError: If the file cannot be written.
    """
    measure = measure_of(result)
    clients = [client for client in result.clients if values_of(client, measure)]
    clients = evenly(by_gain(clients, measure), 12)
    height = max(3.4, 1.1 + 0.42 * len(clients))

    def draw(figure: Figure) -> None:
        low, tall = 0.5 / height, 1 - 1.02 / height
        if clients:
            draw_bars(figure.add_axes((0.125, low, 0.455, tall)), clients, measure)
        place = (0.67, low, 0.25, tall) if clients else (0.09, low, 0.8, tall)
        draw_learning(figure.add_axes(place), result, measure)

    save_png(draw, path, size=(10.4, height), dots_per_inch=170)


def _ranks(result: SimulationResult) -> dict[str, int]:
    seen = {client.client: client.rank for entry in result.rounds for client in entry.clients}
    return seen | {client.client: client.rank for client in result.clients}


def _train_losses(result: SimulationResult) -> dict[str, list[tuple[int, float]]]:
    losses: dict[str, list[tuple[int, float]]] = {}
    for entry in result.rounds:
        for client in entry.clients:
            if client.train_loss is not None:
                losses.setdefault(client.client, []).append((entry.round, client.train_loss))
    return losses
