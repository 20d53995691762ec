import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from intarsia_client.errors import StorageError
from intarsia_platform.reporting.plots import (
    broadcast_plot,
    clients_plot,
    learning_plot,
    privacy_plot,
    save_figure_png,
    traffic_plot,
)
from intarsia_platform.results import SimulationResult
from PIL import Image

Simulation = Callable[..., SimulationResult]
PLOTS = [clients_plot, learning_plot, traffic_plot, broadcast_plot, privacy_plot]


def words(svg: str) -> set[str]:
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own picture
    return {text.strip() for text in root.itertext() if text.strip()}


def test_every_client_and_model_is_named(simulation: Simulation) -> None:
    plot = clients_plot(simulation())
    assert plot is not None
    expected = {"torch", "numpy", "ray", "mlflow", "base alone", "own adapter", "federated"}
    assert expected <= words(plot.svg)
    assert "left is better" in plot.caption


def test_without_own_adapters_there_is_no_such_mark(simulation: Simulation) -> None:
    plot = clients_plot(simulation(own=(None,) * 4))
    assert plot is not None
    assert "own adapter" not in words(plot.svg)


def test_accuracy_is_better_to_the_right(simulation: Simulation) -> None:
    shares = (0.1, 0.2, 0.3, 0.4)
    plot = clients_plot(
        simulation(accuracy=True, base=shares, own=shares, federated=shares, tests=(0.5,))
    )
    assert plot is not None
    assert "right is better" in plot.caption


def test_what_was_not_measured_is_not_drawn(simulation: Simulation) -> None:
    nothing = simulation(tests=(None,), losses=False, evaluated=False)
    assert clients_plot(nothing) is None
    assert learning_plot(nothing) is None
    assert privacy_plot(nothing) is None
    assert traffic_plot(simulation(tests=())) is None
    assert broadcast_plot(simulation(tests=())) is None


def test_training_losses_alone_are_drawn(simulation: Simulation) -> None:
    plot = learning_plot(simulation(tests=(None, None)))
    assert plot is not None
    assert "Training loss by client" in words(plot.svg)
    assert "Test perplexity" not in words(plot.svg)


def test_bytes_are_summed_in_the_caption(simulation: Simulation) -> None:
    plot = traffic_plot(simulation())
    assert plot is not None
    assert "sent 6\u202fMB in all and received 6\u202fMB" in plot.caption


def test_the_broadcast_shows_what_it_costs_and_leaves_out(simulation: Simulation) -> None:
    plot = broadcast_plot(simulation(residual=0.004, cut=0.0))
    assert plot is not None
    assert {"Rank", "Down per client", "Energy", "held back", "cut"} <= words(plot.svg)
    assert "sent rank 32. 1.2\u202f% of the energy" in plot.caption
    assert "0\u202f% was cut for good" in plot.caption


def test_privacy_shows_the_spend_and_the_budget(simulation: Simulation) -> None:
    plot = privacy_plot(simulation(epsilon=1.5))
    assert plot is not None
    assert {"spent", "budget"} <= words(plot.svg)
    assert "ε = 4.50 at δ = 1e-5, of a budget of 8." in plot.caption


@pytest.mark.parametrize("tests", [(60.0,), tuple(200.0 - i for i in range(100))])
def test_one_round_and_many_rounds_are_drawn(simulation: Simulation, tests) -> None:
    for plot in PLOTS:
        drawn = plot(simulation(tests=tests, epsilon=0.01))
        assert drawn is not None
        assert words(drawn.svg)


def test_many_clients_stay_readable_and_small(simulation: Simulation) -> None:
    names = tuple(f"site-{number}" for number in range(500))
    many = simulation(names=names)
    plot = clients_plot(many)
    assert plot is not None
    assert "40 of 500 clients" in plot.caption
    assert sum(word.startswith("site-") for word in words(plot.svg)) == 40
    learning = learning_plot(many)
    assert learning is not None
    assert len(learning.svg) < 200_000


def test_values_that_are_not_finite_are_gaps(simulation: Simulation) -> None:
    result = simulation(epsilon=1.0)
    broken = dataclasses.replace(
        result.rounds[1],
        epsilon_max=math.inf,
        clients=tuple(
            dataclasses.replace(client, train_loss=math.nan) for client in result.rounds[1].clients
        ),
    )
    result = dataclasses.replace(result, rounds=(result.rounds[0], broken, result.rounds[2]))
    for plot in PLOTS:
        drawn = plot(result)
        assert drawn is not None
        assert "nan" not in drawn.svg
        assert "inf" not in words(drawn.svg)


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_picture_is_crisp_small_and_the_same_each_time(
    simulation: Simulation, tmp_path: Path, evaluated: bool
) -> None:
    names = tuple(f"department {number}" for number in range(8))
    result = simulation(names=names, evaluated=evaluated)
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        save_figure_png(result, path)
        assert path.stat().st_size <= 200_000
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width >= 1600


def test_a_place_that_cannot_be_written_is_one_error(
    simulation: Simulation, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save_figure_png(simulation(), tmp_path / "file" / "figure.png")
