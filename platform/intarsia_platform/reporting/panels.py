"""The panels that pictures are made of, each drawn onto axes of a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intarsia_platform.reporting.drawing import direct_labels
from intarsia_platform.reporting.measures import (
    THIN_SPACE,
    Measure,
    bytes_text,
    evenly,
    printable,
    share_text,
)
from intarsia_platform.reporting.palette import BASE, FEDERATED, INK, LINE, OWN, QUIET, WORSE
from intarsia_platform.results import ClientEvaluation, SimulationResult

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED_LINES = 12
MOST_LINES = 40
_LONGEST_NAME = 22
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the models that clients are measured with.

    Args:
        name: For people.
        colour: Its colour.
        values: Its number for each client, None where it was not measured.
    """

    name: str
    colour: str
    values: tuple[float | None, ...]


def models_of(clients: Sequence[ClientEvaluation], measure: Measure) -> list[Model]:
    """The models that were measured with at least one client.

    Args:
        clients: The clients.
        measure: The number to show.

    Returns:
        At most three models: base, own, federated.
    """
    models = [
        Model(
            name="base alone",
            colour=BASE.light,
            values=tuple(measure.of(client.base) for client in clients),
        ),
        Model(
            name="own adapter",
            colour=OWN.light,
            values=tuple(measure.of(client.own) for client in clients),
        ),
        Model(
            name="federated",
            colour=FEDERATED.light,
            values=tuple(measure.of(client.federated) for client in clients),
        ),
    ]
    return [model for model in models if any(value is not None for value in model.values)]


def draw_dumbbells(
    figure: Figure, axes: Axes, clients: Sequence[ClientEvaluation], measure: Measure
) -> None:
    """Draw one line a client, with a dot for each model.

    Args:
        figure: The picture.
        axes: An empty panel.
        clients: At least one, each measured with at least one model.
        measure: The number to show.
    """
    models = models_of(clients, measure)
    for row in range(len(clients)):
        measured = [value for model in models if (value := model.values[row]) is not None]
        axes.plot(
            [min(measured), max(measured)], [row, row], color=LINE.light, linewidth=3.2, zorder=1
        )
    for model in models:
        dots = [(value, row) for row, value in enumerate(model.values) if value is not None]
        values, rows = zip(*dots, strict=True)
        axes.scatter(values, rows, s=42, color=model.colour, zorder=2)
    _scale_values(axes, models, measure)
    _name_rows(axes, [client.client for client in clients])
    _heading(figure, axes, measure.key.capitalize(), models)


def draw_bars(
    figure: Figure, axes: Axes, clients: Sequence[ClientEvaluation], measure: Measure
) -> None:
    """Draw a group of bars a client, one bar a model, from zero.

    Args:
        figure: The picture.
        axes: An empty panel.
        clients: At least one, each measured with at least one model.
        measure: The number to show.
    """
    models = models_of(clients, measure)
    thickness = 0.78 / len(models)
    for place, model in enumerate(models):
        offset = (place - (len(models) - 1) / 2) * thickness
        bars = [
            (row + offset, value) for row, value in enumerate(model.values) if value is not None
        ]
        rows, values = zip(*bars, strict=True)
        axes.barh(rows, values, height=0.86 * thickness, color=model.colour)
        for row, value in bars:
            _beside_bar(axes, value, row, measure.text(value), size=6.5)
    everything = [value for model in models for value in model.values if value is not None]
    axes.set_xlim(0, 1.08 * max(everything) or 1.0)
    _format_axis(axes, "x", measure)
    axes.grid(axis="x")
    _name_rows(axes, [client.client for client in clients])
    _heading(figure, axes, f"Held-out {measure.key}", models)


def draw_learning(figure: Figure, axes: Axes, result: SimulationResult, measure: Measure) -> None:
    """Draw the server's test by round, from the base alone as round 0.

    Args:
        figure: The picture.
        axes: An empty panel.
        result: The simulation.
        measure: The number to show.
    """
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"Test {measure.key}")
    base = measure.of(result.base)
    tested = [(entry.round, measure.of(entry.test)) for entry in result.rounds]
    points = [(number, value) for number, value in [(0, base), *tested] if value is not None]
    if not points:
        return
    rounds, values = zip(*points, strict=True)
    if base is not None:
        axes.axhline(base, color=BASE.light, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(rounds, values, color=FEDERATED.light, linewidth=2.2, marker="o", markersize=4.5)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    _format_axis(axes, "y", measure)
    label_rounds(axes, rounds[-1], first=rounds[0])
    labels = [] if base is None else [(base, "base", QUIET.light)]
    if rounds[-1] > 0:
        labels.append((values[-1], measure.text(values[-1]), FEDERATED.light))
    direct_labels(figure, axes, labels)


def draw_train_losses(
    figure: Figure, axes: Axes, losses: dict[str, list[tuple[int, float]]]
) -> None:
    """Draw each client's training loss by round: few with their names, many under their median.

    Args:
        figure: The picture.
        axes: An empty panel.
        losses: Of each client the rounds and the losses, in nats; at least one.
    """
    axes.set_title("Training loss by client")
    named = len(losses) <= MOST_NAMED_LINES
    labels = []
    for client, points in evenly(list(losses.items()), MOST_LINES):
        rounds, values = zip(*points, strict=True)
        marker, width, opacity = ("o", 1.4, 0.75) if named or len(rounds) == 1 else ("", 0.8, 0.35)
        axes.plot(
            rounds,
            values,
            color=OWN.light,
            linewidth=width,
            alpha=opacity,
            marker=marker,
            markersize=2.5,
        )
        if named:
            labels.append((values[-1], printable(client, 16), INK.light))
    by_round: dict[int, list[float]] = {}
    for points in losses.values():
        for number, value in points:
            by_round.setdefault(number, []).append(value)
    numbers = sorted(by_round)
    if not named:
        medians = [statistics.median(by_round[number]) for number in numbers]
        axes.plot(numbers, medians, color=INK.light, linewidth=2, marker="o", markersize=3)
        labels.append((medians[-1], "median", INK.light))
    axes.margins(y=0.1)
    label_rounds(axes, numbers[-1], first=numbers[0])
    direct_labels(figure, axes, labels)


def draw_ranks(axes: Axes, ranks: Sequence[tuple[str, int]]) -> None:
    """Draw the rank of each client as a bar.

    Args:
        axes: An empty panel.
        ranks: Clients and their ranks; at least one.
    """
    axes.set_title("Rank of each client")
    rows = range(len(ranks))
    axes.barh(rows, [rank for _, rank in ranks], height=0.62, color=OWN.light)
    for row, (_, rank) in zip(rows, ranks, strict=True):
        _beside_bar(axes, rank, row, str(rank), size=8)
    _name_rows(axes, [client for client, _ in ranks])
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def draw_bytes(figure: Figure, axes: Axes, result: SimulationResult) -> None:
    """Draw the bytes sent up and down in each round, stacked.

    Args:
        figure: The picture.
        axes: An empty panel.
        result: A simulation with at least one round.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    numbers = [entry.round for entry in result.rounds]
    up = [entry.bytes_up for entry in result.rounds]
    down = [entry.bytes_down for entry in result.rounds]
    axes.bar(numbers, up, width=0.6, color=FEDERATED.light)
    axes.bar(numbers, down, width=0.6, bottom=up, color=BASE.light)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    label_rounds(axes, numbers[-1], first=numbers[0], margin=0.6)
    directions = [
        Model(name="up", colour=FEDERATED.light, values=()),
        Model(name="down", colour=BASE.light, values=()),
    ]
    _heading(figure, axes, "Bytes by round", directions)


def draw_broadcast(figure: Figure, axes: Sequence[Axes], result: SimulationResult) -> None:
    """Draw by round: the rank that clients are sent, what that costs each, and what it leaves out.

    Args:
        figure: The picture.
        axes: Three empty panels.
        result: A simulation with at least one round.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    entries = result.rounds
    per_client = [entry.bytes_down / max(1, len(entry.clients)) for entry in entries]
    series = (
        ("Rank", [("", FEDERATED.light, [float(entry.rank) for entry in entries])]),
        ("Down per client", [("", BASE.light, per_client)]),
        (
            "Energy",
            [
                ("held back", OWN.light, [entry.residual_energy for entry in entries]),
                ("cut", WORSE.light, [entry.cut_energy for entry in entries]),
            ],
        ),
    )
    texts = (lambda value: f"{value:g}", bytes_text, share_text)
    numbers = [entry.round for entry in entries]
    for panel, (title, lines), text in zip(axes, series, texts, strict=True):
        for _, colour, values in lines:
            panel.plot(numbers, values, color=colour, linewidth=2, marker="o", markersize=3.5)
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS, integer=title == "Rank"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text(value)))
        label_rounds(panel, numbers[-1], first=numbers[0])
        named = [Model(name=name, colour=colour, values=()) for name, colour, _ in lines if name]
        _heading(figure, panel, title, named)


def label_rounds(axes: Axes, last: int, *, first: int, margin: float = 0.15) -> None:
    """Make the x axis one of rounds.

    Args:
        axes: The panel.
        last: The last round.
        first: The first round.
        margin: Room on both sides, in rounds.
    """
    step = max(1, math.ceil((last - first) / 8))
    axes.set_xticks(range(first, last + 1, step))
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("round", loc="right")
    axes.grid(axis="y")


def _heading(figure: Figure, axes: Axes, title: str, models: Sequence[Model]) -> None:
    """A title, and after it the models' names in their colours: no legend to look up."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
    from matplotlib.transforms import ScaledTranslation

    words: list[Artist] = [TextArea(title, textprops={"color": INK.light, "fontsize": 9.5})]
    for model in models:
        dot = TextArea("●", textprops={"color": model.colour, "fontsize": 8.5})
        name = TextArea(model.name, textprops={"color": QUIET.light, "fontsize": 8.5})
        words.append(HPacker(children=[dot, name], pad=0, sep=3, align="baseline"))
    row = AnchoredOffsetbox(
        "lower left",
        child=HPacker(children=words, pad=0, sep=12, align="baseline"),
        pad=0,
        borderpad=0,
        frameon=False,
        bbox_to_anchor=(0, 1),
        bbox_transform=axes.transAxes + ScaledTranslation(0, 9 / 72, figure.dpi_scale_trans),
    )
    axes.add_artist(row)


def _scale_values(axes: Axes, models: Sequence[Model], measure: Measure) -> None:
    """Scale the x axis: logarithmic where perplexities lie far apart."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    values = [value for model in models for value in model.values if value is not None]
    low, high = min(values), max(values)
    if measure.key == "perplexity" and low > 0 and high / low > 4:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.12, high * 1.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * ((high - low) or abs(high) or 1.0)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    _format_axis(axes, "x", measure)
    axes.grid(axis="x")


def _format_axis(axes: Axes, which: str, measure: Measure) -> None:
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _: object) -> str:
        if measure.key == "accuracy":
            return f"{100 * value:g}{THIN_SPACE}%"
        return f"{value:,g}"

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(text))


def _beside_bar(axes: Axes, value: float, row: float, text: str, *, size: float) -> None:
    axes.annotate(
        text,
        (value, row),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=size,
        color=QUIET.light,
    )


def _name_rows(axes: Axes, clients: Sequence[str]) -> None:
    axes.set_yticks(range(len(clients)), [printable(client, _LONGEST_NAME) for client in clients])
    axes.tick_params(axis="y", labelcolor=INK.light)
    axes.set_ylim(len(clients) - 0.45, -0.55)
