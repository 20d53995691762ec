"""The colours, each for light and for dark surroundings; chosen to differ in lightness too."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Colour:
    """One colour of the page and of the plots.

    Args:
        name: Name of the CSS variable.
        light: Hexadecimal colour on light paper.
        dark: Hexadecimal colour on dark paper.
    """

    name: str
    light: str
    dark: str


PAPER = Colour(name="paper", light="#fbf9f5", dark="#1a1816")
CARD = Colour(name="card", light="#fffefc", dark="#23201d")
INK = Colour(name="ink", light="#2a2520", dark="#ece5da")
QUIET = Colour(name="quiet", light="#6b6259", dark="#b0a699")
LINE = Colour(name="line", light="#e4ddd2", dark="#3a3530")
BASE = Colour(name="base", light="#7f756b", dark="#a0968b")
OWN = Colour(name="own", light="#c47f1d", dark="#e3a94b")
FEDERATED = Colour(name="federated", light="#17696a", dark="#57b8b1")
WORSE = Colour(name="worse", light="#b0452f", dark="#e58a72")

COLOURS = (PAPER, CARD, INK, QUIET, LINE, BASE, OWN, FEDERATED, WORSE)


def css_variables() -> str:
    """The palette as CSS, light by default and dark where the reader prefers it.

    Returns:
        Rules that set ``--name`` for each colour, and ``--name-rgb`` for mixing with opacity.
    """
    light = _declarations({colour.name: colour.light for colour in COLOURS})
    dark = _declarations({colour.name: colour.dark for colour in COLOURS})
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )


def with_variables(svg: str) -> str:
    """Let an SVG follow the page's colours.

    Args:
        svg: What was drawn with the palette's light colours.

    Returns:
        The same with each such ``fill`` and ``stroke`` as a CSS variable.
    """
    names = {colour.light: colour.name for colour in COLOURS}

    def variable(match: re.Match[str]) -> str:
        name = names.get(match[2])
        return match[0] if name is None else f"{match[1]}: var(--{name})"

    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", variable, svg)


def _declarations(values: dict[str, str]) -> str:
    declared = []
    for name, value in values.items():
        channels = " ".join(str(int(value[start : start + 2], 16)) for start in (1, 3, 5))
        declared.append(f"--{name}: {value}; --{name}-rgb: {channels};")
    return " ".join(declared)
