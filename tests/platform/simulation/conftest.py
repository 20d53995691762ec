"""A federation small enough for tests, on the embedded base and real sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from deadly import killed_by
from intarsia_platform.configuration import SimulationConfiguration, read_configuration
from intarsia_platform.demo.run import BASE
from intarsia_platform.planning.client_plan import RankPlan
from intarsia_platform.results import RoundResult

SENTENCES = (
    "Return a copy of the sequence with the elements in reverse order.",
    "Raise an error if the file cannot be opened for reading.",
    "The keys of the mapping are sorted before they are written.",
    "Wait until the thread has finished or the timeout has passed.",
    "Split the text at every line break and strip the white space.",
    "A tensor with the same shape as the input, on the same device.",
)


def _write(path: Path, counts: Mapping[str, int]) -> None:
    rows = [
        {
            "text": f"{SENTENCES[(number + place) % len(SENTENCES)]} Site {place}, note {number}.",
            "client": site,
            "label": ("odd", "even")[number % 2],
        }
        for place, (site, count) in enumerate(counts.items())
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def kill_at() -> Iterator[Callable[..., None]]:
    """Runs a simulation in a process that kills itself when a round has reached a state."""
    script = Path(__file__).with_name("killed_run.py")
    with killed_by(script, str(BASE)) as ask:

        def kill(state: str, configuration: Path, home: Path, *overrides: str, **mark: str) -> None:
            ask(
                configuration=str(configuration), overrides=overrides, home=str(home),
                state=state, round=2, environment=mark,
            )  # fmt: skip

        yield kill


@pytest.fixture
def configuration_file(tmp_path: Path) -> Path:
    """A configuration of four sites, three rounds, in this process, with its data beside it."""
    folder = tmp_path / "study"
    folder.mkdir()
    sites = [f"site-{place}" for place in range(4)]
    _write(folder / "train.jsonl", dict.fromkeys(sites, 6))
    _write(folder / "test.jsonl", dict.fromkeys(sites, 2))
    path = folder / "study.toml"
    path.write_text(
        f"""
[model]
base = {json.dumps(str(BASE))}
task = "causal-lm"
[data]
train = "train.jsonl"
test = "test.jsonl"
[lora]
target_modules = ["q_proj", "v_proj"]
ranks = [2, 4]
[federation]
clients = 4
rounds = 3
[train]
batch_size = 2
learning_rate = 1e-2
max_length = 24
[engine]
grid = "inprocess"
threads = 1
[evaluation]
clients = false
[tracking]
mlflow = false
"""
    )
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Everything in this process on one thread, as the configuration says for simulations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_records(configuration_file: Path) -> Callable[[Mapping[str, int]], None]:
    """Replace the training records by so many of each site."""
    return lambda counts: _write(configuration_file.parent / "train.jsonl", counts)


@pytest.fixture
def configure(configuration_file: Path) -> Callable[..., SimulationConfiguration]:
    """Read the configuration with overrides."""

    def read(*overrides: str) -> SimulationConfiguration:
        return read_configuration(configuration_file, overrides)

    return read


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, str, str]] = []
        self.published: list[RoundResult] = []
        self.warnings: list[str] = []
        self.plans: list[RankPlan] = []

    def stage(self, text: str) -> None: ...

    def run_begun(self, run_id: str, rounds: int, published: int) -> None: ...

    def planned(self, plan: RankPlan) -> None:
        self.plans.append(plan)

    def round_begun(self, number: int, cohort: int) -> None: ...

    def replied(self, number: int, client: str, status: str) -> None:
        self.replies.append((number, client, status))

    def round_published(self, result: RoundResult) -> None:
        self.published.append(result)

    def client_measured(self, done: int, total: int) -> None: ...

    def warned(self, line: str) -> None:
        self.warnings.append(line)


@pytest.fixture
def observer() -> Silent:
    """An observer that keeps what it is told."""
    return Silent()
