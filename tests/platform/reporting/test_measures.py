import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_platform.reporting.measures import (
    ACCURACY,
    LOSS,
    PERPLEXITY,
    by_gain,
    bytes_text,
    duration_text,
    evenly,
    measure_of,
    printable,
    share_text,
)
from intarsia_platform.results import Measured, SimulationResult

THIN = "\u202f"


def test_the_measure_is_what_the_task_is_judged_by(
    simulation: Callable[..., SimulationResult],
) -> None:
    assert measure_of(simulation()) is PERPLEXITY
    shares = (0.1, 0.2, 0.3, 0.4)
    classifier = simulation(
        accuracy=True, base=shares, own=shares, federated=shares, tests=(0.5,), server_base=0.1
    )
    assert measure_of(classifier) is ACCURACY
    assert measure_of(simulation(tests=(), server_base=None, evaluated=False)) is LOSS


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        (PERPLEXITY, 1234.5, "1,234"),
        (PERPLEXITY, 99.96, "100.0"),
        (PERPLEXITY, 12.34, "12.3"),
        (PERPLEXITY, 1.234, "1.23"),
        (PERPLEXITY, 3.2e9, "3.20e+09"),
        (ACCURACY, 0.8125, f"81.2{THIN}%"),
        (LOSS, None, "–"),  # noqa: RUF001
    ],
)
def test_numbers_for_people(measure, value, text) -> None:
    assert measure.text(value) == text


@pytest.mark.parametrize(
    ("measure", "before", "after", "text"),
    [
        (PERPLEXITY, 100.0, 42.0, f"−58{THIN}%"),  # noqa: RUF001
        (PERPLEXITY, 100.0, 106.0, f"+6{THIN}%"),
        (PERPLEXITY, 100.0, 100.1, f"0{THIN}%"),
        (ACCURACY, 0.10, 0.75, "+65.0 points"),
        (ACCURACY, 0.75, 0.70, "−5.0 points"),  # noqa: RUF001
        (PERPLEXITY, None, 2.0, "–"),  # noqa: RUF001
    ],
)
def test_changes_for_people(measure, before, after, text) -> None:
    assert measure.change(before, after) == text


def test_a_gain_is_positive_where_the_model_got_better() -> None:
    assert PERPLEXITY.gain(100.0, 50.0) == pytest.approx(math.log(2))
    assert PERPLEXITY.gain(50.0, 100.0) == pytest.approx(-math.log(2))
    assert ACCURACY.gain(0.5, 0.75) == 0.25
    assert LOSS.gain(3.0, 2.5) == 0.5
    assert LOSS.gain(None, 2.5) is None


def test_a_number_that_is_not_finite_counts_as_missing() -> None:
    assert PERPLEXITY.of(Measured(perplexity=math.inf)) is None
    assert LOSS.of(Measured(loss=math.nan)) is None
    assert LOSS.of(None) is None


def test_clients_are_ordered_by_gain_and_the_unmeasured_come_last(
    simulation: Callable[..., SimulationResult],
) -> None:
    clients = simulation().clients
    assert [client.client for client in by_gain(clients, PERPLEXITY)] == [
        "torch",
        "numpy",
        "ray",
        "mlflow",
    ]
    assert [client.client for client in by_gain(clients, ACCURACY)] == [
        client.client for client in clients
    ]


@given(st.lists(st.integers(), max_size=300), st.integers(2, 50))
def test_evenly_keeps_order_ends_and_limit(items: list[int], limit: int) -> None:
    picked = evenly(list(enumerate(items)), limit)
    assert len(picked) == min(limit, len(items))
    assert picked == sorted(set(picked))
    if items:
        assert picked[0][0] == 0
        assert picked[-1][0] == len(items) - 1


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, f"0{THIN}B"),
        (999, f"999{THIN}B"),
        (999_700, f"1{THIN}MB"),
        (1_250_000, f"1.25{THIN}MB"),
        (28_400_000, f"28.4{THIN}MB"),
        (3.1e15, f"3,100{THIN}TB"),
    ],
)
def test_bytes(number: float, text: str) -> None:
    assert bytes_text(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, f"0{THIN}%"),
        (1e-9, f"<0.01{THIN}%"),
        (0.0012, f"0.12{THIN}%"),
        (0.02, f"2{THIN}%"),
        (0.0345, f"3.5{THIN}%"),
        (1.0, f"100{THIN}%"),
    ],
)
def test_shares(share: float, text: str) -> None:
    assert share_text(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, f"0.0{THIN}s"),
        (9.34, f"9.3{THIN}s"),
        (59.6, f"1{THIN}min"),
        (131, f"2{THIN}min 11{THIN}s"),
        (7265, f"2{THIN}h 1{THIN}min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_foreign_names_cannot_steer_a_terminal_or_a_line() -> None:
    assert printable("a\x1b[31mb\n\u202ec") == "a\ufffd[31mb\ufffd\ufffdc"
    assert printable("Universitätsklinikum", 8) == "Univers…"
