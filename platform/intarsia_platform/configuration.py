"""A simulation's configuration: one TOML file, checked whole before anything starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia_client.assignment import (
    PRECISIONS,
    SCHEDULES,
    START_KINDS,
    PrivacyParameters,
    TrainingParameters,
)
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
from intarsia_platform.configuration_tables import (
    AUTO,
    GRIDS,
    ROBUST_RULES,
    DataConfiguration,
    EngineConfiguration,
    EvaluationConfiguration,
    FederationConfiguration,
    LoraConfiguration,
    ModelConfiguration,
    RobustConfiguration,
    TrackingConfiguration,
)
from intarsia_platform.partition import parse_rule
from intarsia_platform.planning.resources import ResourcesConfiguration

MAX_SEED = 2**63 - 1


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
        robust: What stands between a dishonest client and the sum.
        resources: What the clients have, for ranks that are planned.
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
    robust: RobustConfiguration = field(default_factory=RobustConfiguration)
    resources: ResourcesConfiguration = field(default_factory=ResourcesConfiguration)
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
        if path and _located(path, folder) != path:
            typed[f"{table}.{name}"] = path
            built[table] = dataclasses.replace(built[table], **{name: _located(path, folder)})
    configuration = SimulationConfiguration(**built, typed=typed)
    _check_together(configuration)
    return configuration


def _check_together(configuration: SimulationConfiguration) -> None:
    """Refuse values that are right each by itself and wrong beside each other."""
    federation, robust = configuration.federation, configuration.robust
    if federation.minimum_accepted > federation.clients:
        raise InputError(
            "federation.minimum_accepted",
            federation.minimum_accepted,
            f"set it to at most federation.clients, {federation.clients}",
        )
    if configuration.train.head_learning_rate and configuration.model.task == "causal-lm":
        raise InputError(
            "train.head_learning_rate",
            configuration.train.head_learning_rate,
            "leave it out: a causal-lm has no head of its own to train",
        )
    if robust.rule == "fltrust" and not robust.root:
        raise InputError("robust.root", '""', "name records of the server's own for fltrust")
    if configuration.lora.ranks == AUTO and not configuration.resources.declared:
        raise InputError(
            "lora.ranks",
            f'"{AUTO}"',
            "declare what clients have in the table [resources], such as memory_mb = [400, 800]",
        )


def _located(typed: str, folder: Path) -> str:
    """Look for a path beside the configuration, then in the current folder."""
    path = Path(typed).expanduser()
    for place in (folder / path, path):
        if place.exists():
            return str(place.absolute())
    return typed


_PATHS = (("model", "base"), ("data", "train"), ("data", "test"), ("robust", "root"))
_TABLES: dict[str, type] = {
    "model": ModelConfiguration,
    "data": DataConfiguration,
    "lora": LoraConfiguration,
    "federation": FederationConfiguration,
    "train": TrainingParameters,
    "privacy": PrivacyParameters,
    "robust": RobustConfiguration,
    "resources": ResourcesConfiguration,
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


def _ranks(value: tuple[int, ...] | str) -> str | None:
    if isinstance(value, str):
        return None if value == AUTO else f'write "{AUTO}" or a list of ranks'
    return None if value and min(value) >= 1 else "list at least one rank, each 1 or more"


def _positive(values: tuple[float, ...]) -> str | None:
    return None if all(value > 0 for value in values) else "set each above 0"


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
    "lora.replan_rounds": at_least(0),
    "federation.method": not_empty,
    "federation.clients": at_least(1),
    "federation.rounds": at_least(1),
    "federation.fraction": _share,
    "federation.seed": _seed,
    "federation.deadline_seconds": above(0),
    "federation.minimum_accepted": at_least(1),
    "federation.start": one_of("", *START_KINDS),
    "federation.broadcast_rank": at_least(0),
    "federation.residual_rank": at_least(0),
    "federation.upload": one_of(*PRECISIONS),
    "federation.download": one_of(*PRECISIONS),
    "federation.max_examples": at_least(0),
    "train.epochs": at_least(1),
    "train.batch_size": at_least(1),
    "train.learning_rate": above(0),
    "train.max_length": at_least(2),
    "train.schedule": one_of(*SCHEDULES),
    "train.warmup": _warmup,
    "train.weight_decay": at_least(0),
    "train.max_gradient_norm": at_least(0),
    "train.max_steps": at_least(0),
    "train.learning_rate_rank": at_least(0),
    "train.head_learning_rate": at_least(0),
    # Hiding a whole client is not offered by simulations yet, only hiding one record.
    "privacy.unit": one_of("none", "example"),
    "privacy.epsilon": above(0),
    "privacy.delta": _delta,
    "privacy.max_grad_norm": above(0),
    "privacy.noise_multiplier": at_least(0),
    "robust.rule": one_of(*ROBUST_RULES),
    "robust.max_norm": at_least(0),
    "robust.byzantine": at_least(0),
    "resources.memory_mb": _positive,
    "resources.gflops": _positive,
    "resources.upload_mbps": _positive,
    "resources.download_mbps": _positive,
    "resources.round_seconds": at_least(0),
    "engine.grid": one_of(*GRIDS),
    "engine.workers": at_least(1),
    "engine.gpus_per_worker": at_least(0),
    "engine.threads": at_least(0),
    "evaluation.rounds": at_least(1),
    "evaluation.max_records": at_least(0),
}
