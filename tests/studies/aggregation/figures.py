"""The study's plots: bars with error bars, curves over the rounds, bytes beside quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from study import CENTRAL, LOCAL, Row
from summary import LEDGER, Entry, Setting

_ACCENT, _FAMILY, _OTHERS = "#0b5fa5", "#7fb2dd", "#9a9a9a"
_LINES = ("#d1495b", "#edae49", "#66a182", "#8d6a9f", "#30638e", "#a0522d", "#5f5f5f", "#c48fb8")
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
    kinds = {"bars": (_bars, 3.9), "curves": (_curves, 3.0), "bytes": (_bytes, 3.0)}
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


def _bars(axes: Axes, setting: Setting) -> None:
    entries = [entry for entry in setting.entries if entry.row not in (CENTRAL, LOCAL)]
    positions = range(len(entries))
    for position, entry in zip(positions, entries, strict=True):
        if entry.values:
            axes.barh(
                position,
                entry.mean,
                xerr=entry.error or 0.0,
                color=_colour(entry.row),
                hatch="" if entry.complete else "///",
                error_kw={"capsize": 2, "elinewidth": 1},
            )
            axes.annotate(
                f" {_short(setting, entry)}",
                (entry.mean + (entry.error or 0.0), position),
                va="center",
                fontsize=7,
            )
        else:
            text = "not for this task" if entry.refused else "missing"
            axes.annotate(f" {text}", (0.0, position), va="center", fontsize=7, color="#b00020")
    for name, style in ((CENTRAL.name, "-"), (LOCAL.name, ":")):
        end = setting.entry(name)
        if end.values:
            axes.axvline(end.mean, color="black", linestyle=style, linewidth=1, label=name)
    axes.set_yticks(list(positions), [entry.row.name for entry in entries], fontsize=7)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    limit = max([1e-9, *(entry.mean for entry in setting.entries if entry.values)])
    axes.set_xlim(0.0, 1.15 * limit)


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
        (entry, {"color": _LINES[turn % len(_LINES)], "linestyle": "-" if turn < 8 else "--"})
        for turn, entry in enumerate(others)
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
