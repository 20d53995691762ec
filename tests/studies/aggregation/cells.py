"""One cell: a federation trained by the platform's own pieces, measured on the global test set.

Clients run the real client app in an in-process grid; their replies pass admission and are added up
by the strategy. Left out of a simulation are its database, its registry and its report.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from intarsia_client.assignment import TrainingParameters
from intarsia_client.base_model import BaseModel, linear_modules, load_base
from intarsia_client.errors import FederationError, InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.peft_files import encode_adapter
from intarsia_client.records import Record
from intarsia_client.shards import write_shards
from intarsia_client.wire import Adapter
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.replies import reply_size
from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.partition import partition_records
from intarsia_platform.simulation.preparation import (
    PreparedData,
    initial_adapter,
    virtual_clients,
)
from remembered import Outputs, remember
from study import CENTRAL, LOCAL, Cell, Row, evenly
from texts import base_path, read_texts

CLIENT_APP = "intarsia_client.app:app"

_lower_layers: dict[str, Outputs] = {}

logging.getLogger("flwr").setLevel(logging.ERROR)


@dataclass
class _Traffic:
    """Bytes of one cell."""

    down: list[float] = field(default_factory=list)
    up: list[float] = field(default_factory=list)


def run_cell(cell: Cell, shared: Path) -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: The cell.
        shared: The folder of shared data.

    Returns:
        What it found, ready for JSON: ``loss``, ``accuracy`` or ``perplexity`` at the end (means
        over clients where each has a model of its own), ``curve`` with the round, its measure and
        loss, mean bytes ``down`` and ``up`` of one client in each round, shares of energy lost and
        held back, ``seconds`` of processor time. Only ``refused``, with the reason, where the
        method cannot be had on this data.

    Raises:
        InputError: If data is absent.
        FederationError: If a client failed.
    """
    begun = time.process_time()
    texts = read_texts(cell.dataset, shared)
    base = _base(cell, shared)
    measured_on = texts.validation if cell.tuning else texts.test
    with tempfile.TemporaryDirectory() as folder:
        parts = partition_records(
            texts.train, rule=cell.partition, clients=cell.federation.clients, seed=cell.seed
        )
        data = PreparedData(
            labels=texts.labels,
            train=write_shards(Path(folder) / "train.jsonl", parts),
            test=_same_for_all(Path(folder) / "test.jsonl", list(parts), measured_on),
            server=measured_on,
        )
        try:
            strategy = LoraStrategy(_plan(cell, base, data), method=_method(cell.row))
        except InputError as error:
            return {"refused": str(error)}
        run = _Run(cell, base, data, strategy)
        found = run.alone() if cell.row == LOCAL else run.federated()
    return {**found, "seconds": round(time.process_time() - begun, 2)}


def _base(cell: Cell, shared: Path) -> BaseModel:
    dataset, texts = cell.dataset, read_texts(cell.dataset, shared)
    path = base_path(dataset, shared)
    base = load_base(path, task=dataset.task, labels=texts.labels, seed=cell.seed)
    remember(
        base,
        (*texts.train, *texts.test, *texts.validation),
        layers=min(dataset.layers),
        max_length=dataset.max_length,
        outputs=_lower_layers.setdefault(dataset.name, {}),
    )
    return base


def _same_for_all(path: Path, clients: Sequence[str], records: Sequence[Record]) -> dict[str, Any]:
    """Every client measures its own model on the global test set."""
    return dict.fromkeys(clients, write_shards(path, {"all": records})["all"])


def _method(row: Row) -> str:
    return "ledger" if row in (CENTRAL, LOCAL) else row.method


def _plan(cell: Cell, base: BaseModel, data: PreparedData) -> FederationPlan:
    dataset, federation, row = cell.dataset, cell.federation, cell.row
    modules = linear_modules(base, dataset.target_modules)
    rounds, epochs = federation.rounds, dataset.epochs
    if row == CENTRAL:
        rounds, epochs = 1, dataset.epochs * federation.rounds
    return FederationPlan(
        run="study",
        rounds=rounds,
        seed=cell.seed,
        base=base.base,
        base_digest=base.digest,
        task=dataset.task,
        target_modules={
            name: shape for name, shape in modules.items() if _layer(name) in dataset.layers
        },
        ranks=cell.ranks,
        alpha_over_rank=cell.alpha_over_rank,
        labels=data.labels,
        fraction=federation.fraction,
        training=TrainingParameters(
            epochs=epochs,
            batch_size=dataset.batch_size,
            learning_rate=cell.learning_rate,
            max_length=dataset.max_length,
            keep_optimizer=row.keep_optimizer,
            learning_rate_rank=cell.learning_rate_rank,
            head_learning_rate=dataset.head_learning_rate,
        ),
        start=row.start,
        upload=row.upload,
        download=row.download,
        broadcast_rank=row.broadcast_rank,
        names=dict(enumerate(data.train, start=1)),
    )


def _layer(module: str) -> int | None:
    found = re.search(r"\.layers?\.(\d+)\.", module)
    return int(found[1]) if found else None


class _Run:
    """One federation under way."""

    def __init__(
        self, cell: Cell, base: BaseModel, data: PreparedData, strategy: LoraStrategy
    ) -> None:
        self._cell = cell
        self._base = base
        self._data = data
        self._strategy = strategy
        self._grid = InProcessGrid(CLIENT_APP, virtual_clients(strategy.plan, data))
        self._nodes = list(self._grid.get_node_ids())
        self._traffic = _Traffic()

    def federated(self) -> dict[str, Any]:
        """Train round after round; measure the global model, or at the end the clients' own."""
        personal = self._cell.row.personal
        rounds = self._strategy.plan.rounds
        measured = evenly(rounds, self._cell.measured) if not personal else ()
        encoded, exact = initial_adapter(self._strategy.plan, self._base), None
        curve = [self._point(0, None)]
        cut, held_back = [], []
        for number in range(1, rounds + 1):
            published, exact, energies = self._round(number, encoded, exact)
            encoded = encode_adapter(published)
            cut.append(energies[0])
            held_back.append(energies[1])
            if number in measured:
                curve.append(self._point(number, published))
        if personal:
            curve.append(self._clients_point(rounds, encoded, "evaluate", plain=False))
        return {
            **_named(self._cell, curve[-1]),
            "curve": curve,
            "down": self._traffic.down,
            "up": self._traffic.up,
            "cut_energy": cut,
            "residual_energy": held_back,
        }

    def alone(self) -> dict[str, Any]:
        """Let clients train alone, as many rounds as the federation, and measure each."""
        plan = self._strategy.plan
        empty = initial_adapter(plan, self._base)
        point = self._clients_point(plan.rounds, empty, "train.alone", plain=True)
        return {**_named(self._cell, point), "curve": [self._point(0, None), point]}

    def _round(
        self, number: int, encoded: Any, exact: Adapter | None
    ) -> tuple[Adapter, Adapter | None, tuple[float, float]]:
        strategy = self._strategy
        broadcast = strategy.broadcast(encoded)
        assignments = strategy.assignments(number, self._nodes, broadcast)
        opened = strategy.open_round(number, broadcast, assignments, exact)
        replies = self._replies(strategy.train_messages(opened, assignments))
        self._traffic.down.append(_mean([opened.bytes_down(node) for node in assignments]))
        self._traffic.up.append(_mean([reply_size(reply) for reply in replies]))
        updates = [strategy.admit_reply(opened, reply) for reply in replies]
        updates.sort(key=lambda update: update.assignment.client)
        made = strategy.aggregate(opened, [strategy.weighted(opened, one) for one in updates])
        return made.published, made.exact, (made.cut_energy, made.residual_energy)

    def _replies(self, messages: Any) -> list[Any]:
        pending = set(self._grid.push_messages(messages))
        replies: list[Any] = []
        while pending:
            for reply in self._grid.pull_messages(pending):
                if reply.has_error():
                    raise FederationError("client", reply.error.reason, "run the cell again")
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _point(self, number: int, adapter: Adapter | None) -> dict[str, float]:
        found = evaluate(
            self._base,
            self._data.server,
            adapter=adapter,
            max_length=self._cell.dataset.max_length,
        )
        return {
            "round": number,
            "measure": float(getattr(found, self._cell.dataset.measure)),
            "loss": found.loss,
        }

    def _clients_point(
        self, number: int, encoded: Any, message_type: str, *, plain: bool
    ) -> dict[str, float]:
        """The mean over some clients of how good their own models are on the global test set."""
        strategy = self._strategy
        nodes = self._nodes[: self._cell.most_clients]
        messages = strategy.evaluate_messages(
            number, strategy.broadcast(encoded), nodes, message_type=message_type, plain=plain
        )
        found = [strategy.measurement(reply) for reply in self._replies(messages)]
        measured = [asdict(one) for one in found if one is not None]
        if len(measured) < len(nodes):
            raise FederationError(
                "measuring", f"{len(measured)} of {len(nodes)} clients", "run the cell again"
            )
        return {
            "round": number,
            "measure": _mean([float(one[self._cell.dataset.measure]) for one in measured]),
            "loss": _mean([one["loss"] for one in measured]),
            "clients": len(measured),
        }


def _named(cell: Cell, point: dict[str, float]) -> dict[str, float]:
    return {cell.dataset.measure: point["measure"], "loss": point["loss"]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
