"""The panels that pictures are made of, each drawn onto axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from intarsia_platform.reporting.drawing import direct_labels
from intarsia_platform.reporting.measures import Measure, bytes_text, printable
from intarsia_platform.reporting.palette import BASE, FEDERATED, INK, LINE, OWN, QUIET
from intarsia_platform.results import ClientEvaluation, SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED_LINES = 12
_LONGEST_NAME = 22


def values_of(client: ClientEvaluation, measure: Measure) -> list[float]:
    found = (measure.of(measured) for measured in (client.base, client.own, client.federated))
    return [value for value in found if value is not None]


def _name(client: str) -> str:
    return printable(client, _LONGEST_NAME)


def _models(
    clients: Sequence[ClientEvaluation], measure: Measure
) -> list[tuple[str, str, list[float | None]]]:
    """Name, colour and values by client of each model that was measured at all."""
    models = [
        ("base alone", BASE.light, [measure.of(client.base) for client in clients]),
        ("own adapter", OWN.light, [measure.of(client.own) for client in clients]),
        ("federated", FEDERATED.light, [measure.of(client.federated) for client in clients]),
    ]
    return [model for model in models if any(value is not None for value in model[2])]


def _heading(axes: Axes, title: str, models: Sequence[tuple[str, str, list[float | None]]]) -> None:
    """A title, and after it the models' names in their colours: no legend to look up."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    words = [TextArea(title, textprops={"color": INK.light, "fontsize": 9.5})]
    for name, colour, _ in models:
        words.append(TextArea(f"●\u2009{name}", textprops={"color": colour, "fontsize": 8.5}))
    row = HPacker(children=words, pad=0, sep=12, align="baseline")
    axes.add_artist(
        AnchoredOffsetbox(
            "lower left",
            child=row,
            pad=0,
            borderpad=0,
            frameon=False,
            bbox_to_anchor=(0, 1),
            bbox_transform=axes.transAxes + _points_up(axes, 9),
        )
    )


def _points_up(axes: Axes, points: float) -> object:
    from matplotlib.transforms import ScaledTranslation

    return ScaledTranslation(0, points / 72, axes.get_figure().dpi_scale_trans)


def _value_axis(axes: Axes, values: Sequence[float], measure: Measure) -> None:
    """Scale the x axis for a measure: logarithmic where perplexities lie far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if measure.key == "perplexity" and low > 0 and high / low > 4:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.12, high * 1.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * ((high - low) or abs(high) or 1.0)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, measure)))
    axes.grid(axis="x")


def _tick(value: float, measure: Measure) -> str:
    return f"{100 * value:g} %" if measure.key == "accuracy" else f"{value:,g}"


def _client_rows(axes: Axes, clients: Sequence[ClientEvaluation]) -> None:
    axes.set_yticks(range(len(clients)), [_name(client.client) for client in clients])
    axes.tick_params(axis="y", labelcolor=INK.light)
    axes.set_ylim(len(clients) - 0.45, -0.55)


def draw_dumbbells(axes: Axes, clients: Sequence[ClientEvaluation], measure: Measure) -> None:
    models = _models(clients, measure)
    for row, client in enumerate(clients):
        values = values_of(client, measure)
        axes.plot([min(values), max(values)], [row, row], color=LINE.light, linewidth=3.2, zorder=1)
    for _, colour, values in models:
        rows = [(value, row) for row, value in enumerate(values) if value is not None]
        axes.scatter(
            [value for value, _ in rows], [row for _, row in rows], s=42, color=colour, zorder=2
        )
    _value_axis(
        axes, [value for client in clients for value in values_of(client, measure)], measure
    )
    _client_rows(axes, clients)
    _heading(axes, measure.key.capitalize(), models)


def draw_bars(axes: Axes, clients: Sequence[ClientEvaluation], measure: Measure) -> None:
    from matplotlib.ticker import FuncFormatter

    models = _models(clients, measure)
    thickness = 0.78 / len(models)
    for place, (_, colour, values) in enumerate(models):
        offset = (place - (len(models) - 1) / 2) * thickness
        rows = [(row + offset, value) for row, value in enumerate(values) if value is not None]
        axes.barh(
            [row for row, _ in rows],
            [value for _, value in rows],
            height=thickness * 0.86,
            color=colour,
        )
        for row, value in rows:
            axes.annotate(
                measure.text(value),
                (value, row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color=QUIET.light,
            )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, measure)))
    axes.grid(axis="x")
    axes.set_xlim(
        0, 1.08 * max(value for client in clients for value in values_of(client, measure))
    )
    _client_rows(axes, clients)
    _heading(axes, f"Held-out {measure.key}", models)


def round_axis(axes: Axes, last: int, *, first: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlim(first - 0.15, last + 0.15)
    axes.set_xlabel("round", loc="right")
    axes.grid(axis="y")


def draw_learning(axes: Axes, result: SimulationResult, measure: Measure) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    base = measure.of(result.base)
    points = [(0, base)] if base is not None else []
    for entry in result.rounds:
        value = measure.of(entry.test)
        if value is not None:
            points.append((entry.round, value))
    axes.set_title(f"Test {measure.key}")
    if not points:
        return
    rounds, values = [number for number, _ in points], [value for _, value in points]
    if base is not None:
        axes.axhline(base, color=BASE.light, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(rounds, values, color=FEDERATED.light, linewidth=2.2, marker="o", markersize=4.5)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, measure)))
    round_axis(axes, rounds[-1], first=rounds[0])
    labels = [(base, "base", QUIET.light)] if base is not None else []
    if len(points) > len(labels):
        labels.append((values[-1], measure.text(values[-1]), FEDERATED.light))
    direct_labels(axes, labels)


def draw_train_losses(axes: Axes, losses: dict[str, list[tuple[int, float]]]) -> None:
    axes.set_title("Training loss by client")
    named = len(losses) <= MOST_NAMED_LINES
    labels = []
    for client, points in losses.items():
        rounds, values = [number for number, _ in points], [value for _, value in points]
        axes.plot(
            rounds,
            values,
            color=OWN.light,
            linewidth=1.4,
            alpha=0.75 if named else 0.25,
            marker="o",
            markersize=2.5,
        )
        if named:
            labels.append((values[-1], printable(client, 16), INK.light))
    numbers = [number for points in losses.values() for number, _ in points]
    axes.margins(y=0.1)
    round_axis(axes, max(numbers), first=min(numbers))
    direct_labels(axes, labels)


def draw_ranks(axes: Axes, ranks: Sequence[tuple[str, int]]) -> None:
    axes.set_title("Rank of each client")
    rows = range(len(ranks))
    axes.barh(rows, [rank for _, rank in ranks], height=0.62, color=OWN.light)
    for row, (_, rank) in zip(rows, ranks, strict=True):
        axes.annotate(
            str(rank),
            (rank, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=QUIET.light,
        )
    axes.set_yticks(rows, [_name(client) for client, _ in ranks])
    axes.tick_params(axis="y", labelcolor=INK.light)
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def draw_bytes(axes: Axes, result: SimulationResult) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    numbers = [entry.round for entry in result.rounds]
    up = [entry.bytes_up for entry in result.rounds]
    down = [entry.bytes_down for entry in result.rounds]
    axes.bar(numbers, up, width=0.6, color=FEDERATED.light)
    axes.bar(numbers, down, width=0.6, bottom=up, color=BASE.light)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.set_xlabel("round", loc="right")
    axes.set_xlim(numbers[0] - 0.6, numbers[-1] + 0.6)
    axes.grid(axis="y")
    _heading(axes, "Sent", [("up", FEDERATED.light, []), ("down", BASE.light, [])])
