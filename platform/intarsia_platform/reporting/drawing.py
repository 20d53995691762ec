"""How pictures are drawn and written: one look, deterministic bytes, nothing global touched."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia_client.files import write_bytes

from intarsia_platform.reporting.palette import CARD, INK, LINE, QUIET, with_variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK.light,
    "text.parse_math": False,
    "axes.edgecolor": LINE.light,
    "axes.labelcolor": QUIET.light,
    "axes.titlecolor": INK.light,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlepad": 10.0,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE.light,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET.light,
    "ytick.color": QUIET.light,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
}


def svg_of(draw: Draw, *, name: str, size: tuple[float, float], label: str) -> str:
    """Draw a picture as SVG to stand inside a page.

    Args:
        draw: Draws onto an empty figure, with the palette's light colours.
        name: Makes the identifiers inside the picture; unique within a page.
        size: Width and height in inches.
        label: What the picture shows, for those who do not see it.

    Returns:
        One ``<svg>`` element without fixed size, whose colours are CSS variables; the same bytes
        for the same picture.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _figure(draw, size, {**_STYLE, "svg.hashsalt": name}) as figure:
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Groups are numbered alike in every picture, and the style would rule the whole page.
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    drawn = re.sub(r"<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", drawn, count=1)
    view = re.search(r'viewBox="[^"]*"', drawn)
    body = drawn[drawn.index(">") + 1 :]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="plot" role="img" aria-label="{escape(label)}" {view[0] if view else ""}>'
    )
    return with_variables(head + body)


def save_png(draw: Draw, path: Path, *, size: tuple[float, float], dots_per_inch: int) -> None:
    """Draw a picture as PNG on light paper.

    Args:
        draw: As for :func:`svg_of`.
        path: Where the file shall be.
        size: Width and height in inches.
        dots_per_inch: Resolution.

    Raises:
        StorageError: If the file cannot be written.
    """
    stream = io.BytesIO()
    with _figure(draw, size, _STYLE) as figure:
        figure.savefig(
            stream,
            format="png",
            dpi=dots_per_inch,
            facecolor=CARD.light,
            metadata={"Software": None},
        )
    write_bytes(path, stream.getvalue())


def direct_labels(figure: Figure, axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at their right end instead of in a legend, moved apart where they would collide.

    Args:
        figure: The picture.
        axes: Its panel, with final limits and scale.
        labels: Of each line its last value, its name and its colour.
    """
    if not labels:
        return
    ordered = sorted(labels, key=lambda label: label[0])
    to_fraction = (axes.transData + axes.transAxes.inverted()).transform
    wanted = [float(to_fraction((axes.get_xlim()[0], value))[1]) for value, _, _ in ordered]
    height = axes.get_position().height * figure.get_size_inches()[1]
    heights = spread(wanted, gap=0.16 / height)
    for fraction, (_, text, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            text,
            xy=(1.0, fraction),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], *, gap: float) -> list[float]:
    """Move ascending positions apart, as little as keeps them in order.

    Args:
        wanted: Ascending positions.
        gap: The least distance between neighbours.

    Returns:
        Positions at least ``gap`` apart. Neighbours that had to move keep their mean.
    """
    groups: list[tuple[float, int]] = []
    for position in wanted:
        groups.append((position, 1))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= gap * (below + above) / 2:
                break
            groups[-2:] = [((low * below + high * above) / (below + above), below + above)]
    return [
        centre + gap * (index - (size - 1) / 2) for centre, size in groups for index in range(size)
    ]


@contextmanager
def _figure(draw: Draw, size: tuple[float, float], style: dict[str, Any]) -> Iterator[Figure]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Readers' browsers have glyphs that the font used for measuring lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size)
        draw(figure)
        yield figure
