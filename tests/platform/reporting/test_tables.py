from collections.abc import Callable

from intarsia_platform.reporting import clients_table, rounds_table
from intarsia_platform.results import RefusedClient, RuleDecision, SimulationResult
from rich.console import Console

Simulation = Callable[..., SimulationResult]


def rendered(table) -> str:
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_each_client_is_a_row_the_best_gain_first(simulation: Simulation) -> None:
    lines = rendered(clients_table(simulation())).splitlines()
    rows = [line.split() for line in lines[4:8]]
    assert [row[0] for row in rows] == ["torch", "numpy", "ray", "mlflow"]
    assert rows[0][1:6] == ["4", "1,000", "200", "100", "50.0"]


def test_many_clients_are_cut_and_it_says_so(simulation: Simulation) -> None:
    names = tuple(f"site-{number}" for number in range(90))
    table = clients_table(simulation(names=names))
    assert table.row_count == 40
    assert "40 of 90 clients" in rendered(table)


def test_foreign_names_are_neither_markup_nor_control(simulation: Simulation) -> None:
    text = rendered(clients_table(simulation(names=("[red]x[/red]", "a\x1b[31m"))))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_every_round_is_a_row_after_the_base(simulation: Simulation) -> None:
    text = rendered(rounds_table(simulation()))
    rows = [line.split() for line in text.splitlines()[4:8]]
    assert [row[:2] for row in rows] == [
        ["base", "120"],
        ["1", "90.0"],
        ["2", "70.0"],
        ["3", "60.0"],
    ]
    assert "refused" not in text
    assert "held" not in text and "cut" not in text
    assert "epsilon" not in text


def test_everything_fits_in_eighty_columns(simulation: Simulation) -> None:
    missing = (RefusedClient(client="ray", reason="budget"),)
    decided = RuleDecision(
        client="ray", outcome="left-out", share_before=0.25, share=0.0, factor=1.0
    )
    result = simulation(
        epsilon=1.0, refused=missing, sat_out=missing, residual=0.11, cut=1e-9, decisions=(decided,)
    )
    assert "…" not in rendered(rounds_table(result))
    assert "4.50" not in rendered(rounds_table(simulation()))
    assert "…" not in rendered(clients_table(result))
