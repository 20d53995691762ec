from collections.abc import Callable

from intarsia_platform.reporting.measures import ACCURACY, PERPLEXITY
from intarsia_platform.reporting.summary import absent, client_rows, comparison, facts, headline
from intarsia_platform.results import RefusedClient, SimulationResult

Simulation = Callable[..., SimulationResult]


def test_the_headline_is_the_servers_test(simulation: Simulation) -> None:
    line = headline(simulation())
    assert (line.before, line.after, line.worse) == ("120", "60.0", False)
    assert line.sentence == "50\u202f% lower on the server's held-out records."


def test_a_headline_that_got_worse_says_so(simulation: Simulation) -> None:
    line = headline(simulation(tests=(180.0,)))
    assert line.worse
    assert line.sentence.startswith("50\u202f% higher")


def test_accuracy_gains_points(simulation: Simulation) -> None:
    shares = (0.1, 0.2, 0.3, 0.4)
    line = headline(
        simulation(
            accuracy=True, base=shares, own=shares, federated=shares, tests=(0.8,), server_base=0.05
        )
    )
    assert line.sentence.startswith("75.0 points gained")


def test_without_a_test_at_the_server_the_clients_speak(simulation: Simulation) -> None:
    line = headline(simulation(tests=(None,)))
    assert line.before == "108"
    assert line.after == "48.8"
    assert "on average over the clients' held-out records" in line.sentence
    nothing = headline(simulation(tests=(None,), evaluated=False))
    assert nothing.sentence == "No model was measured on held-out records."


def test_an_unchanged_model_is_called_unchanged(simulation: Simulation) -> None:
    line = headline(simulation(tests=(120.0,)))
    assert line.sentence.startswith("No change")
    assert not line.worse


def test_the_comparison_names_those_who_lose(simulation: Simulation) -> None:
    assert comparison(simulation()) == (
        "The federated adapter does better than the base alone for 3 of 4 clients (not mlflow), "
        "and better than an adapter of their own for 2 of 4 clients (not ray, mlflow)."
    )
    assert comparison(simulation(own=(None,) * 4, base=(200.0, 100.0, 80.0, 90.0))) == (
        "The federated adapter does better than the base alone for all 4 clients."
    )
    assert comparison(simulation(evaluated=False)) == ""


def test_rows_hold_numbers_changes_heat_and_the_best(simulation: Simulation) -> None:
    rows = client_rows(simulation(), PERPLEXITY)
    first, last = rows[0], rows[-1]
    assert (first.client, first.rank, first.train_examples) == ("torch", 4, "1,000")
    assert [cell.text for cell in first.cells] == ["200", "100", "50.0"]
    assert [cell.change for cell in first.cells] == ["", "−50\u202f%", "−75\u202f%"]  # noqa: RUF001
    assert [cell.heat for cell in first.cells] == [0.0, 0.5, 1.0]
    assert [cell.best for cell in first.cells] == [False, False, True]
    assert (last.client, last.cells[2].kind) == ("mlflow", "worse")
    assert first.epsilon is None


def test_rows_leave_out_what_nobody_has(simulation: Simulation) -> None:
    rows = client_rows(simulation(own=(None,) * 4, epsilon=1.25), PERPLEXITY)
    assert all(len(row.cells) == 2 for row in rows)
    assert rows[0].epsilon == "3.75"


def test_a_missing_number_is_a_dash_and_not_a_best(simulation: Simulation) -> None:
    rows = client_rows(simulation(), ACCURACY)
    assert {cell.text for row in rows for cell in row.cells} == {"\u2013"}
    assert not any(cell.best for row in rows for cell in row.cells)


def test_facts_count_clients_without_evaluation_too(simulation: Simulation) -> None:
    known = dict(facts(simulation(evaluated=False)))
    assert known["clients"] == "4"
    assert known["training records"] == "400"
    assert known["sent by clients"] == "6\u202fMB"
    assert known["time"] == "1\u202fmin 15\u202fs"


def test_those_without_a_part_are_listed_with_their_reason(simulation: Simulation) -> None:
    result = simulation(
        tests=(90.0,),
        refused=(RefusedClient(client="ray", reason="not-finite"),),
        sat_out=(RefusedClient(client="mlflow", reason="budget"),),
    )
    assert absent(result) == [
        (1, "ray", "refused", "not-finite"),
        (1, "mlflow", "sat out", "budget"),
    ]
