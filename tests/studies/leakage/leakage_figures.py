"""The study's table and its heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intarsia_continual.access_audits import Estimate
from intarsia_platform.audits.leakage import Cell, Leakage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def table(found: Leakage, groups: Sequence[str]) -> str:
    """Every caller and group as a table in Markdown.

    Args:
        found: The audit.
        groups: The groups, in order.

    Returns:
        The table.
    """
    heads = ["caller", "group", "meant to", "by name", "DDI", "chance", "p", "UGI"]
    heads += ["UGI, left out", "findings"]
    lines = [heads, ["---"] * len(heads)]
    ordered = sorted(found.cells, key=lambda cell: (cell.principal, groups.index(cell.group)))
    lines += [_row(cell) for cell in ordered]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(cell: Cell) -> list[str]:
    chance = cell.attacks[0].chance
    return [
        cell.principal,
        cell.group,
        "yes" if cell.intended else "no",
        "answered" if cell.named else "refused",
        _shown(cell.ddi),
        f"{_digits(chance.low)} to {_digits(chance.high)}",
        f"{min(one.chance.p_value for one in cell.attacks):.4f}",
        _shown(cell.ugi),
        _shown(cell.ugi_left_out),
        "; ".join(cell.findings),
    ]


def _shown(estimate: Estimate) -> str:
    value, low, high = map(_digits, (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _digits(value: float) -> str:
    # Without the sign of what rounds to nothing.
    return f"{round(value, 2) + 0.0:.2f}"


def draw(found: Leakage, groups: Sequence[str], path: Path) -> None:
    """Two heat maps, DDI and UGI: callers down, groups across, what is meant to be framed.

    Args:
        found: The audit.
        groups: The groups, in order.
        path: Where the PNG shall be.
    """
    callers = list(dict.fromkeys(cell.principal for cell in found.cells))
    cells = {(cell.principal, cell.group): cell for cell in found.cells}
    size = (2.6 + 1.5 * len(groups), 1.6 + 0.42 * len(callers))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, colours in zip(panels, ("ddi", "ugi"), ("RdBu_r", "PuOr"), strict=True):
        values = np.array(
            [[getattr(cells[caller, group], name).value for group in groups] for caller in callers]
        )
        picture = axes.imshow(values, vmin=-1, vmax=1, cmap=colours, aspect="auto")
        axes.set_title(
            "DDI: 0 is chance, 1 finds every member"
            if name == "ddi"
            else "UGI: 0 is as good as with access",
            fontsize=9,
            loc="left",
        )
        axes.set_xticks(range(len(groups)), groups, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(callers)), callers, fontsize=8)
        _mark(axes, [[cells[caller, group] for group in groups] for caller in callers], values)
        figure.colorbar(picture, ax=axes, shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _mark(axes: Any, rows: Sequence[Sequence[Cell]], values: Any) -> None:
    for down, row in enumerate(rows):
        for across, cell in enumerate(row):
            value = values[down, across]
            ink = "white" if abs(value) > 0.6 else "black"
            mark = _digits(value) + (" !" if cell.findings else "")
            axes.text(across, down, mark, ha="center", va="center", fontsize=7, color=ink)
            if cell.intended:
                frame = Rectangle((across - 0.48, down - 0.46), 0.96, 0.92, fill=False, lw=1.6)
                axes.add_patch(frame)
