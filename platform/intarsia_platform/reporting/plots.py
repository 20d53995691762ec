"""The report's pictures, each drawn from a simulation's result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intarsia_platform.reporting.drawing import direct_labels, save_png, svg_of
from intarsia_platform.reporting.measures import (
    Measure,
    by_gain,
    bytes_text,
    evenly,
    measure_of,
    share_text,
)
from intarsia_platform.reporting.palette import FEDERATED, WORSE
from intarsia_platform.reporting.panels import (
    MOST_LINES,
    draw_bars,
    draw_broadcast,
    draw_bytes,
    draw_dumbbells,
    draw_learning,
    draw_ranks,
    draw_train_losses,
    label_rounds,
    models_of,
)
from intarsia_platform.results import ClientEvaluation, SimulationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLIENTS = 40
_MOST_GROUPS = 12
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
    everyone = _evaluated(result, measure)
    if not everyone:
        return None
    clients = evenly(everyone, MOST_CLIENTS)
    height = 0.95 + 0.29 * len(clients)
    direction = "left" if measure.lower_is_better else "right"
    caption = f"Held-out {measure.key}; further {direction} is better. "
    caption += "The client that gained most stands on top."
    if len(clients) < len(everyone):
        caption += f" {len(clients)} of {len(everyone)} clients, evenly from best to worst gain."

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.18, 0.42 / height, 0.79, 1 - 0.82 / height))
        draw_dumbbells(figure, axes, clients, measure)

    label = f"{caption} The same numbers stand in the table."
    return Plot(
        svg=svg_of(draw, name="clients", size=(_WIDTH, height), label=label), caption=caption
    )


def learning_plot(result: SimulationResult) -> Plot | None:
    """Test quality by round, and the clients' training losses beside it where they report any.

    Args:
        result: The simulation.

    Returns:
        The plot, or None where there is nothing to draw.
    """
    measure = measure_of(result)
    final = measure.of(result.final)
    losses = _train_losses(result)
    sentences = []
    if final is not None:
        before = measure.text(measure.of(result.base))
        sentences.append(
            f"Test {measure.key} at the server: {before} with the base alone, "
            f"{measure.text(final)} after the last round."
        )
    if losses:
        shown = f", of {MOST_LINES} evenly chosen clients" if len(losses) > MOST_LINES else ""
        sentences.append(f"Mean training loss that each client reports, in nats{shown}.")
    if not sentences:
        return None

    def draw(figure: Figure) -> None:
        alone = len(sentences) == 1
        if final is not None:
            axes = figure.add_axes((0.065, 0.15, 0.83 if alone else 0.355, 0.7))
            draw_learning(figure, axes, result, measure)
        if losses:
            place = (0.065, 0.15, 0.78, 0.7) if alone else (0.54, 0.15, 0.315, 0.7)
            draw_train_losses(figure, figure.add_axes(place), losses)

    caption = " ".join(sentences)
    svg = svg_of(draw, name="learning", size=(_WIDTH, 3.1), label=caption)
    return Plot(svg=svg, caption=caption)


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
    height = max(2.6, 0.9 + 0.21 * len(ranks))

    def draw(figure: Figure) -> None:
        low, tall = 0.45 / height, 1 - 0.9 / height
        if ranks:
            draw_ranks(figure.add_axes((0.18, low, 0.25, tall)), ranks)
        place = (0.56, low, 0.41, tall) if ranks else (0.1, low, 0.87, tall)
        draw_bytes(figure, figure.add_axes(place), result)

    svg = svg_of(draw, name="traffic", size=(_WIDTH, height), label=caption)
    return Plot(svg=svg, caption=caption)


def broadcast_plot(result: SimulationResult) -> Plot | None:
    """Rank and bytes down per client by round, and the energy that they leave out.

    Args:
        result: The simulation.

    Returns:
        The plot, or None before the first round.
    """
    if not result.rounds:
        return None
    last = result.rounds[-1]
    caption = (
        f"After the last round clients are sent rank {last.rank}. "
        f"{share_text(last.residual_energy)} of the energy (the squared Frobenius norm) is held "
        f"back for later rounds, {share_text(last.cut_energy)} was cut for good."
    )

    def draw(figure: Figure) -> None:
        places = ((0.06, 0.2, 0.22, 0.58), (0.4, 0.2, 0.22, 0.58), (0.74, 0.2, 0.23, 0.58))
        draw_broadcast(figure, [figure.add_axes(place) for place in places], result)

    svg = svg_of(draw, name="broadcast", size=(_WIDTH, 2.0), label=caption)
    return Plot(svg=svg, caption=caption)


def privacy_plot(result: SimulationResult) -> Plot | None:
    """Largest epsilon of any client after each round, under the budget.

    Args:
        result: The simulation.

    Returns:
        The plot, or None without differential privacy.
    """
    spent = [
        (entry.round, entry.epsilon_max)
        for entry in result.rounds
        if entry.epsilon_max is not None and math.isfinite(entry.epsilon_max)
    ]
    if not spent:
        return None
    privacy = result.configuration.get("privacy", {})
    budget, delta = privacy.get("epsilon"), privacy.get("delta")
    caption = f"The most that any client has spent is ε = {spent[-1][1]:.2f}"
    caption += f" at δ = {delta:.0e}".replace("e-0", "e-") if isinstance(delta, float) else ""
    caption += f", of a budget of {budget:g}." if isinstance(budget, int | float) else "."

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.065, 0.19, 0.83, 0.62))
        axes.set_title("Privacy spent, ε")
        rounds, values = zip((0, 0.0), *spent, strict=True)
        axes.plot(
            rounds,
            values,
            color=FEDERATED.light,
            linewidth=2.2,
            marker="o",
            markersize=4.5,
            clip_on=False,
        )
        labels = [(values[-1], "spent", FEDERATED.light)]
        if isinstance(budget, int | float):
            axes.axhline(budget, color=WORSE.light, linewidth=1.2, linestyle=(0, (4, 3)))
            labels.append((float(budget), "budget", WORSE.light))
        axes.set_ylim(bottom=0)
        label_rounds(axes, rounds[-1], first=0)
        direct_labels(figure, axes, labels)

    svg = svg_of(draw, name="privacy", size=(_WIDTH, 2.3), label=caption)
    return Plot(svg=svg, caption=caption)


def save_figure_png(result: SimulationResult, path: Path) -> None:
    """Write the one picture that tells a simulation: clients on the left, rounds on the right.

    Args:
        result: The simulation.
        path: Where the PNG shall be.

    Raises:
        StorageError: If the file cannot be written.
    """
    measure = measure_of(result)
    clients = evenly(_evaluated(result, measure), _MOST_GROUPS)
    height = max(3.4, 1.1 + 0.42 * len(clients))

    def draw(figure: Figure) -> None:
        low, tall = 0.5 / height, 1 - 1.02 / height
        if clients:
            axes = figure.add_axes((0.125, low, 0.455, tall))
            draw_bars(figure, axes, clients, measure)
        place = (0.67, low, 0.25, tall) if clients else (0.09, low, 0.8, tall)
        draw_learning(figure, figure.add_axes(place), result, measure)

    save_png(draw, path, size=(10.4, height), dots_per_inch=170)


def _evaluated(result: SimulationResult, measure: Measure) -> Sequence[ClientEvaluation]:
    """Clients measured with at least one model, the most gained first."""
    return by_gain((client for client in result.clients if models_of([client], measure)), measure)


def _ranks(result: SimulationResult) -> dict[str, int]:
    seen = {client.client: client.rank for entry in result.rounds for client in entry.clients}
    return seen | {client.client: client.rank for client in result.clients}


def _train_losses(result: SimulationResult) -> dict[str, list[tuple[int, float]]]:
    losses: dict[str, list[tuple[int, float]]] = {}
    for entry in result.rounds:
        for client in entry.clients:
            # A loss that overflowed is a gap in the curve, not its scale.
            if client.train_loss is not None and math.isfinite(client.train_loss):
                losses.setdefault(client.client, []).append((entry.round, client.train_loss))
    return losses
