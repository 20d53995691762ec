"""The study's plots: who gets what, retrieval, measures over the arrivals, the cost of deletion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from adapterswap_parts import (
    BASE,
    CHOSEN,
    CHRONOLOGICAL,
    ONE_FOR_ALL,
    OWN,
    RETRIEVED,
    ROUTED,
    TOLD,
    UNIFORM,
    WITHOUT,
)
from adapterswap_study import ACCESS, DELETION, RETRIEVAL, Dataset, Study
from adapterswap_summary import Figure, Results, is_had, mean_curves
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

_ACCENT, _LIGHT, _GREY = "#0b5fa5", "#7fb2dd", "#9a9a9a"
_BARS = {
    BASE: ("base alone", _GREY),
    WITHOUT: ("without access\nto the group", _GREY),
    OWN: ("own adapter", _ACCENT),
    RETRIEVED[1]: ("retrieved 1", _LIGHT),
    RETRIEVED[2]: ("retrieved 2", _LIGHT),
    RETRIEVED[3]: ("retrieved 3", _LIGHT),
    ROUTED["arrow"]: ("all, Arrow", "#66a182"),
    ROUTED["lag"]: ("all, LAG", "#66a182"),
    UNIFORM: ("all, equally", _GREY),
    ONE_FOR_ALL: ("one for all", "#edae49"),
}
_LINES = {
    TOLD: ("AdapterSwap, told the group", _ACCENT, "-"),
    CHOSEN: ("AdapterSwap, retrieved", _LIGHT, "-"),
    CHRONOLOGICAL: ("one adapter, trained on", "#d1495b", "--"),
    BASE: ("base alone", _GREY, ":"),
}

Found = Mapping[tuple[str, str, str, str], Figure]
Panel = Callable[[Axes, Dataset], None]


def draw(study: Study, results: Results, figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw every part that is in the study, a file each.

    Args:
        study: The study.
        results: From cells' keys to their results.
        figures: The figures.
        folder: Where to write.

    Returns:
        The files.
    """
    found = {(one.part, one.data, one.row, one.name): one for one in figures}

    def curves(axes: Axes, dataset: Dataset) -> None:
        for learner, values in mean_curves(study, results, dataset).items():
            label, colour, style = _LINES[learner]
            places = range(1, len(values) + 1)
            axes.plot(places, values, style, color=colour, marker="o", markersize=3, label=label)
        axes.set_xlabel("groups that have come", fontsize=8)
        axes.set_ylabel(dataset.measure, fontsize=8)
        if dataset.measure == "perplexity":
            _logarithmic(axes, axes.yaxis, "y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    panels: dict[str, Panel] = {
        "access": lambda axes, dataset: _access(axes, dataset, found),
        "retrieval": lambda axes, dataset: _retrieval(axes, dataset, found),
        "continual": curves,
        "deletion": lambda axes, dataset: _deletion(axes, dataset, found),
    }
    written = []
    for part in study.parts:
        path = folder / f"{part}.png"
        _figure(study.datasets, panels[part], path)
        written.append(path)
    return written


def _figure(datasets: Sequence[Dataset], panel: Panel, path: Path) -> None:
    rows = -(-len(datasets) // 2)
    figure, axes = pyplot.subplots(
        rows, 2, figsize=(10.0, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for dataset, one in zip(datasets, axes.flat, strict=False):
        panel(one, dataset)
        one.set_title(dataset.name, loc="left", fontsize=10)
        one.spines[["top", "right"]].set_visible(False)
    for one in axes.flat[len(datasets) :]:
        one.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _logarithmic(axes: Axes, axis: Axis, which: str) -> None:
    """A logarithmic axis with plain numbers, few enough to be read."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    for level in ("major", "minor"):
        axes.tick_params(axis=which, which=level, labelsize=7)
    axis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())


def _access(axes: Axes, dataset: Dataset, found: Found) -> None:
    bars = {way: bar for way, bar in _BARS.items() if is_had(way, dataset)}
    for place, (way, (_, colour)) in enumerate(bars.items()):
        one = found.get((ACCESS, dataset.name, way, dataset.measure))
        if one is None:
            axes.annotate(" missing", (0.0, place), va="center", fontsize=7, color="#b00020")
            continue
        # Points, since a bar on a logarithmic axis has no length.
        axes.errorbar(one.mean, place, xerr=one.error or 0.0, fmt="o", color=colour, capsize=2)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars.values()], fontsize=7)
    axes.invert_yaxis()
    if dataset.measure == "perplexity":
        _logarithmic(axes, axes.xaxis, "x")
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_xlabel(dataset.measure, fontsize=8)


def _retrieval(axes: Axes, dataset: Dataset, found: Found) -> None:
    names = ("top-1", "top-2", "top-3")
    rows = dict.fromkeys(
        row for part, data, row, _ in found if part == RETRIEVAL and data == dataset.name
    )
    for row in rows:
        figures = [found[RETRIEVAL, dataset.name, row, name] for name in names]
        axes.errorbar(
            names,
            [one.mean for one in figures],
            yerr=[one.error or 0.0 for one in figures],
            marker="o",
            markersize=3,
            capsize=2,
            color="black" if row == "chance" else None,
            linestyle=":" if row == "chance" else "-",
            label=row,
        )
    axes.set_ylim(0.0, 1.02)


def _deletion(axes: Axes, dataset: Dataset, found: Found) -> None:
    for place, (row, colour) in enumerate(((OWN, _ACCENT), (ONE_FOR_ALL, "#edae49"))):
        one = found.get((DELETION, dataset.name, row, "seconds"))
        if one is not None:
            axes.barh(place, one.mean, xerr=one.error or 0.0, color=colour, error_kw={"capsize": 2})
    axes.set_yticks((0, 1), ("own adapter again", "one for all again"), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds", fontsize=8)
