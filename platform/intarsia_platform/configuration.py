"""A simulation's configuration: one TOML file, checked whole before anything starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia_client.assignment import SCHEDULES, PrivacyParameters, TrainingParameters
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.wire import TASKS

from intarsia_platform.configuration_reader import (
    Rule,
    above,
    at_least,
    build_tables,
    not_empty,
    one_of,
    read_tables,
)
from intarsia_platform.partition import parse_rule

GRIDS = ("ray", "inprocess")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class ModelConfiguration:
    """The frozen model and what it is for.

    Args:
        base: A transformers folder's absolute path, or a hub identifier.
        task: One of :data:`intarsia_client.wire.TASKS`.
    """

    base: str
    task: str


@dataclass(frozen=True, kw_only=True)
class DataConfiguration:
    """The records and how they become clients.

    Args:
        train: The training records' file or folder.
        test: The held-out records' file or folder, or None.
        text: Name of the field with the text.
        label: Name of the field with the class.
        client: Name of the field with the client.
        partition: See :func:`intarsia_platform.partition.parse_rule`.
    """

    train: str
    test: str | None = None
    text: str = "text"
    label: str = "label"
    client: str = "client"
    partition: str = "natural"


@dataclass(frozen=True, kw_only=True)
class LoraConfiguration:
    """The adapters that the clients train.

    Args:
        target_modules: PEFT's ``target_modules``: ``"all-linear"``, or names' ends.
        ranks: Ranks, given to the clients in turn.
        alpha_over_rank: LoRA's alpha over the rank, the same for every client.
        use_rslora: Divide alpha by the square root of the rank instead.
    """

    target_modules: str | tuple[str, ...] = "all-linear"
    ranks: tuple[int, ...] = (4, 8, 16, 32)
    alpha_over_rank: float = 2.0
    use_rslora: bool = False


@dataclass(frozen=True, kw_only=True)
class FederationConfiguration:
    """The federation's shape.

    Args:
        method: An aggregation method's name.
        clients: How many clients there are.
        rounds: How many rounds.
        fraction: Share of the clients that each round asks, above 0 and at most 1.
        seed: Seed of everything random that is not private.
        deadline_seconds: How long a round waits for answers, in seconds.
        minimum_accepted: How many accepted updates a round needs.
    """

    method: str = "ledger"
    clients: int = 8
    rounds: int = 5
    fraction: float = 1.0
    seed: int = 0
    deadline_seconds: float = 3600.0
    minimum_accepted: int = 1


@dataclass(frozen=True, kw_only=True)
class EngineConfiguration:
    """Where the virtual clients run.

    Args:
        grid: One of :data:`GRIDS`.
        workers: Processes that train at the same time.
        gpus_per_worker: Share of a GPU that each of them holds; 0 for the CPU.
        threads: Threads of each of them; 0 shares this machine's cores between them. Sums come out
            in another order with another number, so it is part of what makes two runs equal.
    """

    grid: str = "ray"
    workers: int = 2
    gpus_per_worker: float = 0.0
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationConfiguration:
    """What is measured on the held-out records.

    Args:
        rounds: The server evaluates every that many rounds; the last one always.
        clients: Whether each client evaluates the final adapter on its own held-out records.
        own_adapters: Whether each client also trains alone for comparison, for as long as the
            federation did.
        max_records: How many held-out records are used, 0 for all.
    """

    rounds: int = 1
    clients: bool = True
    own_adapters: bool = False
    max_records: int = 0


@dataclass(frozen=True, kw_only=True)
class TrackingConfiguration:
    """Where a run can be looked at.

    Args:
        mlflow: Whether the run is mirrored to MLflow in the home.
    """

    mlflow: bool = True


@dataclass(frozen=True, kw_only=True)
class SimulationConfiguration:
    """All that a simulation is told.

    Args:
        model: The frozen model.
        data: The records.
        lora: The adapters.
        federation: The federation's shape.
        train: How a client trains.
        privacy: The privacy that its training must give.
        engine: Where clients run.
        evaluation: What is measured.
        tracking: Where the run can be looked at.
        typed: The paths as they were typed, by key, where they were found elsewhere;
            :attr:`digest` covers these, so that it does not depend on the machine.
    """

    model: ModelConfiguration
    data: DataConfiguration
    lora: LoraConfiguration = field(default_factory=LoraConfiguration)
    federation: FederationConfiguration = field(default_factory=FederationConfiguration)
    train: TrainingParameters = field(default_factory=TrainingParameters)
    privacy: PrivacyParameters = field(default_factory=PrivacyParameters)
    engine: EngineConfiguration = field(default_factory=EngineConfiguration)
    evaluation: EvaluationConfiguration = field(default_factory=EvaluationConfiguration)
    tracking: TrackingConfiguration = field(default_factory=TrackingConfiguration)
    typed: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        """Digest of :meth:`as_mapping`: equal configurations, wherever their files lie."""
        return bytes_digest(canonical_json(self.as_mapping()))

    def as_mapping(self) -> dict[str, Any]:
        """All tables as plain JSON values, paths as they were typed."""
        tables = dataclasses.asdict(self)
        for key, path in tables.pop("typed").items():
            table, _, name = key.partition(".")
            tables[table][name] = path
        mapping: dict[str, Any] = json.loads(canonical_json(tables))
        return mapping


def read_configuration(
    path: Path, overrides: Sequence[str] = (), *, methods: Collection[str] | None = None
) -> SimulationConfiguration:
    """Read and check a configuration file.

    Args:
        path: The TOML file.
        overrides: ``table.key=value`` each, in the place of what the file says.
        methods: Names of the aggregation methods there are; None checks no name.

    Returns:
        The configuration, every value of the right type and in range.

    Raises:
        InputError: If something is wrong: names the key, its value and the remedy, and says how
            many more errors there are.
    """
    tables = read_tables(path, overrides)
    return configuration_from_mapping(tables, folder=path.absolute().parent, methods=methods)


def configuration_from_mapping(
    tables: Mapping[str, Any], *, folder: Path = Path(), methods: Collection[str] | None = None
) -> SimulationConfiguration:
    """Check tables as :meth:`SimulationConfiguration.as_mapping` or a TOML file gives them.

    Args:
        tables: From each table's name to its keys and values; None stands for a key left out.
        folder: Where relative paths are looked for first.
        methods: As in :func:`read_configuration`.

    Returns:
        The configuration.

    Raises:
        InputError: As :func:`read_configuration`.
    """
    given = {
        name: {key: value for key, value in table.items() if value is not None}
        if isinstance(table, Mapping)
        else table
        for name, table in tables.items()
    }
    rules = dict(_RULES)
    if methods is not None:
        rules["federation.method"] = one_of(*sorted(methods))
    built, typed = build_tables(_TABLES, given, rules), {}
    for table, name in _PATHS:
        path = getattr(built[table], name)
        if path is not None and _located(path, folder) != path:
            typed[f"{table}.{name}"] = path
            built[table] = dataclasses.replace(built[table], **{name: _located(path, folder)})
    configuration = SimulationConfiguration(**built, typed=typed)
    federation = configuration.federation
    if federation.minimum_accepted > federation.clients:
        raise InputError(
            "federation.minimum_accepted",
            federation.minimum_accepted,
            f"set it to at most federation.clients, {federation.clients}",
        )
    return configuration


def _located(typed: str, folder: Path) -> str:
    """Look for a path beside the configuration, then in the current folder."""
    path = Path(typed).expanduser()
    for place in (folder / path, path):
        if place.exists():
            return str(place.absolute())
    return typed


_PATHS = (("model", "base"), ("data", "train"), ("data", "test"))
_TABLES: dict[str, type] = {
    "model": ModelConfiguration,
    "data": DataConfiguration,
    "lora": LoraConfiguration,
    "federation": FederationConfiguration,
    "train": TrainingParameters,
    "privacy": PrivacyParameters,
    "engine": EngineConfiguration,
    "evaluation": EvaluationConfiguration,
    "tracking": TrackingConfiguration,
}


def _partition(value: str) -> str | None:
    try:
        parse_rule(value)
    except InputError as error:
        return error.remedy
    return None


def _ranks(value: tuple[int, ...]) -> str | None:
    return None if value and min(value) >= 1 else "list at least one rank, each 1 or more"


def _share(value: float) -> str | None:
    return None if 0 < value <= 1 else "set it above 0 and at most 1"


def _delta(value: float) -> str | None:
    return None if 0 < value < 1 else "set it above 0 and below 1"


def _warmup(value: float) -> str | None:
    return None if 0 <= value <= 1 else "set it between 0 and 1"


def _seed(value: int) -> str | None:
    return None if 0 <= value <= MAX_SEED else f"set it between 0 and {MAX_SEED}"


_RULES: dict[str, Rule] = {
    "model.base": not_empty,
    "model.task": one_of(*TASKS),
    "data.train": not_empty,
    "data.test": not_empty,
    "data.text": not_empty,
    "data.label": not_empty,
    "data.client": not_empty,
    "data.partition": _partition,
    "lora.target_modules": not_empty,
    "lora.ranks": _ranks,
    "lora.alpha_over_rank": above(0),
    "federation.method": not_empty,
    "federation.clients": at_least(1),
    "federation.rounds": at_least(1),
    "federation.fraction": _share,
    "federation.seed": _seed,
    "federation.deadline_seconds": above(0),
    "federation.minimum_accepted": at_least(1),
    "train.epochs": at_least(1),
    "train.batch_size": at_least(1),
    "train.learning_rate": above(0),
    "train.max_length": at_least(2),
    "train.schedule": one_of(*SCHEDULES),
    "train.warmup": _warmup,
    "train.weight_decay": at_least(0),
    "train.max_gradient_norm": at_least(0),
    "train.max_steps": at_least(0),
    # Hiding a whole client is not offered by simulations yet, only hiding one record.
    "privacy.unit": one_of("none", "example"),
    "privacy.epsilon": above(0),
    "privacy.delta": _delta,
    "privacy.max_grad_norm": above(0),
    "privacy.noise_multiplier": at_least(0),
    "engine.grid": one_of(*GRIDS),
    "engine.workers": at_least(1),
    "engine.gpus_per_worker": at_least(0),
    "engine.threads": at_least(0),
    "evaluation.rounds": at_least(1),
    "evaluation.max_records": at_least(0),
}
