import itertools

import pytest
from intarsia_platform.reporting.palette import (
    BASE,
    CARD,
    FEDERATED,
    INK,
    OWN,
    PAPER,
    QUIET,
    WORSE,
    css_variables,
    with_variables,
)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_marks_can_be_told_from_their_background(mode: str) -> None:
    for back in (PAPER, CARD):
        for text in (INK, QUIET, WORSE, FEDERATED):
            assert contrast(getattr(text, mode), getattr(back, mode)) >= 4.5, text.name
        for mark in (BASE, OWN):
            assert contrast(getattr(mark, mode), getattr(back, mode)) >= 3.0, mark.name


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_models_differ_in_more_than_hue_or_are_far_apart(mode: str) -> None:
    for one, other in itertools.combinations((BASE, OWN, FEDERATED), 2):
        first, second = (
            [int(getattr(each, mode)[start : start + 2], 16) for start in (1, 3, 5)]
            for each in (one, other)
        )
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) >= 80


def test_only_the_palette_becomes_variables() -> None:
    svg = f'<path style="fill: {INK.light}; stroke: #123456"/><text>{INK.light}</text>'
    assert with_variables(svg) == (
        f'<path style="fill: var(--ink); stroke: #123456"/><text>{INK.light}</text>'
    )


def test_each_colour_is_there_for_light_and_for_dark() -> None:
    rules = css_variables()
    light, dark = rules.split("prefers-color-scheme")
    assert f"--ink: {INK.light}" in light
    assert f"--ink: {INK.dark}" in dark
    assert "--ink-rgb: 42 37 32;" in light
