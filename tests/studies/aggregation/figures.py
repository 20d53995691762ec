"""The study's plots: means with error bars, curves over the rounds, bytes beside quality."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot, ticker
from matplotlib.axes import Axes
from study import CENTRAL, LOCAL, Row
from summary import LEDGER, Entry, Setting

_ACCENT, _FAMILY, _OTHERS = "#0b5fa5", "#7fb2dd", "#9a9a9a"
# One for each method of the catalogue but the ledger.
_LINES = (
    *("#d1495b", "#edae49", "#66a182", "#8d6a9f", "#3cc8c8"),
    *("#a0522d", "#5f5f5f", "#c48fb8", "#a8b400"),
)
_COLUMNS = 2


def draw(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Draw everything, a file for each data set and kind.

    Args:
        settings: The settings.
        folder: Where to write.

    Returns:
        The files.
    """
    written = []
    kinds = {"means": (_means, 2.9), "curves": (_curves, 3.0), "bytes": (_bytes, 3.0)}
    for name in dict.fromkeys(setting.dataset.name for setting in settings):
        here = [setting for setting in settings if setting.dataset.name == name]
        for kind, (panel, height) in kinds.items():
            path = folder / f"{name}-{kind}.png"
            _figure(here, panel, height, path)
            written.append(path)
    return written


def _figure(settings: Sequence[Setting], panel: Any, height: float, path: Path) -> None:
    rows = -(-len(settings) // _COLUMNS)
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(11.0, height * rows), squeeze=False, layout="constrained"
    )
    for place, one in zip(settings, axes.flat, strict=False):
        panel(one, place)
        one.set_title(place.title, loc="left", fontsize=10)
    for one in axes.flat[len(settings) :]:
        one.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"{settings[0].dataset.name}, test {settings[0].dataset.measure}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colour(row: Row) -> str:
    if row.name == LEDGER:
        return _ACCENT
    return _FAMILY if row.method == LEDGER else _OTHERS


def _means(axes: Axes, setting: Setting) -> None:
    # A row that this setting does not have, or not yet, has no line.
    entries = [
        entry for entry in setting.entries if entry.values and entry.row not in (CENTRAL, LOCAL)
    ]
    for position, entry in enumerate(entries):
        axes.errorbar(
            entry.mean,
            position,
            xerr=entry.error or 0.0,
            marker="o" if entry.complete else "x",
            markersize=5,
            color=_colour(entry.row),
            capsize=3,
        )
        axes.annotate(
            _short(setting, entry),
            (entry.mean + (entry.error or 0.0), position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    central = setting.entry(CENTRAL.name)
    if central.values:
        axes.axvline(central.mean, color="black", linewidth=1, label=CENTRAL.name)
    axes.set_yticks(range(len(entries)), [entry.row.name for entry in entries], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if setting.dataset.measure == "perplexity":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.xaxis.set_minor_formatter(ticker.ScalarFormatter())
        axes.tick_params(which="both", labelsize=7)
    axes.margins(x=0.15)


def _short(setting: Setting, entry: Entry) -> str:
    if setting.dataset.measure == "accuracy":
        return f"{100 * entry.mean:.1f} %"
    return f"{entry.mean:.2f}"


def _styled(setting: Setting) -> list[tuple[Entry, dict[str, Any]]]:
    """The catalogue's methods, each with its line; the ledger last, so that it lies on top."""
    entries = [
        entry
        for entry in setting.entries
        if entry.row.name == entry.row.method and entry.row not in (CENTRAL, LOCAL)
    ]
    others = [entry for entry in entries if entry.row.name != LEDGER]
    styles = [
        (entry, {"color": colour}) for entry, colour in zip(others, cycle(_LINES), strict=False)
    ]
    mine = [
        (entry, {"color": _ACCENT, "linewidth": 2.6}) for entry in entries if entry not in others
    ]
    return [*styles, *mine]


def _curves(axes: Axes, setting: Setting) -> None:
    for entry, style in _styled(setting):
        rounds = [number for number, _ in entry.curve]
        values = [value for _, value in entry.curve]
        axes.plot(rounds, values, marker="o", markersize=3, label=entry.row.name, **style)
    central = setting.entry(CENTRAL.name)
    if central.values:
        axes.axhline(central.mean, color="black", linewidth=1, label=CENTRAL.name)
    if setting.dataset.measure == "perplexity":
        axes.set_yscale("log")
    axes.set_xlabel("round", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _bytes(axes: Axes, setting: Setting) -> None:
    for entry, style in _styled(setting):
        if not entry.values:
            continue
        axes.errorbar(
            sum(entry.down) / 1e6,
            entry.mean,
            yerr=entry.error,
            marker="o",
            color=style["color"],
            capsize=2,
            linestyle="none",
            label=entry.row.name,
        )
    axes.set_xscale("log")
    axes.set_xlabel("MB that a client is sent if it takes part in every round", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
