import math
from collections.abc import Callable

import pytest
from intarsia_platform.results import (
    AdapterResult,
    ClientEvaluation,
    ClientRound,
    Measured,
    RefusedClient,
    RoundResult,
    RuleDecision,
    SimulationResult,
)

NAMES = ("torch", "numpy", "ray", "mlflow")
RANKS = (4, 8, 16, 32)


def quality(value: float | None, *, accuracy: bool) -> Measured | None:
    if value is None:
        return None
    if accuracy:
        return Measured(loss=1.0, accuracy=value)
    return Measured(loss=math.log(value), perplexity=value)


def make(
    *,
    names: tuple[str, ...] = NAMES,
    base: tuple[float, ...] = (200.0, 100.0, 80.0, 50.0),
    own: tuple[float | None, ...] = (100.0, 60.0, 30.0, 45.0),
    federated: tuple[float, ...] = (50.0, 50.0, 40.0, 55.0),
    tests: tuple[float | None, ...] = (90.0, 70.0, 60.0),
    server_base: float | None = 120.0,
    accuracy: bool = False,
    evaluated: bool = True,
    losses: bool = True,
    epsilon: float | None = None,
    refused: tuple[RefusedClient, ...] = (),
    sat_out: tuple[RefusedClient, ...] = (),
    residual: float = 0.0,
    cut: float = 0.0,
    decisions: tuple[RuleDecision, ...] = (),
) -> SimulationResult:
    rounds = []
    for number, test in enumerate(tests, start=1):
        spent = None if epsilon is None else epsilon * number
        clients = tuple(
            ClientRound(
                client=name,
                rank=rank,
                number_of_examples=100,
                status="accepted",
                train_loss=5.0 - 0.3 * number if losses else None,
                epsilon=spent,
            )
            for name, rank in zip(names, RANKS, strict=False)
        )
        rounds.append(
            RoundResult(
                round=number,
                test=quality(test, accuracy=accuracy),
                bytes_up=1_000_000 * number,
                bytes_down=2_000_000,
                seconds=3.0,
                accepted=len(names) - len(refused),
                refused=refused,
                sat_out=sat_out,
                epsilon_max=spent,
                clients=clients,
                rank=32,
                residual_energy=residual * number,
                cut_energy=cut * number,
                decisions=decisions,
            )
        )
    evaluations = tuple(
        ClientEvaluation(
            client=name,
            base=quality(base[index % 4], accuracy=accuracy),
            own=quality(own[index % 4], accuracy=accuracy),
            federated=quality(federated[index % 4], accuracy=accuracy),
            rank=RANKS[index % 4],
            train_examples=1000 + index,
            test_examples=50 + index,
        )
        for index, name in enumerate(names)
    )
    return SimulationResult(
        run="a-run",
        base=quality(server_base, accuracy=accuracy) or Measured(),
        rounds=tuple(rounds),
        adapter=AdapterResult(digest="sha256:" + "ab" * 32, path="/home/a b/adapter", rank=32),
        clients=evaluations if evaluated else (),
        configuration={
            "model": {"base": "tiny", "task": "causal-lm"},
            "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
        },
        seconds=75.0,
    )


@pytest.fixture
def simulation() -> Callable[..., SimulationResult]:
    return make
