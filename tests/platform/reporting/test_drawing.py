import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_platform.reporting.drawing import save_png, spread, svg_of


def draw(figure) -> None:
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.plot([1, 2], [3, 4], marker="o")
    axes.set_title('$\\frac{ <b> --> "&\u4e2d\U0001f332')


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_spread_keeps_order_and_distance(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    moved = spread(wanted, gap=gap)
    assert len(moved) == len(wanted)
    assert all(high - low >= gap - 1e-9 for low, high in itertools.pairwise(moved))
    assert sum(moved) == pytest.approx(sum(wanted), abs=1e-6)


def test_positions_that_are_far_apart_stay() -> None:
    assert spread([0.1, 0.5, 0.9], gap=0.1) == [0.1, 0.5, 0.9]


def test_an_svg_is_well_formed_and_the_same_each_time() -> None:
    svg = svg_of(draw, name="one", size=(3, 2), label='"quoted" & <bold>')
    assert svg == svg_of(draw, name="one", size=(3, 2), label='"quoted" & <bold>')
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own picture
    assert root.get("role") == "img"
    assert root.get("aria-label") == '"quoted" & <bold>'
    assert root.get("width") is None
    assert '$\\frac{ <b> --> "&\u4e2d\U0001f332' in "".join(root.itertext())


def test_two_svgs_share_no_identifier() -> None:
    first, second = (
        set(re.findall(r'\bid="([^"]*)"', svg_of(draw, name=name, size=(3, 2), label="")))
        for name in ("one", "two")
    )
    assert first
    assert not first & second


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg_of(draw, name="one", size=(3, 2), label="")
    save_png(draw, tmp_path / "a.png", size=(3, 2), dots_per_inch=50)
    assert dict(matplotlib.rcParams) == before
