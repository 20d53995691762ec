"""The coordinator's side: a federation from a run's configuration to a PEFT adapter folder.

It runs once, in Flower's own loop, and keeps nothing between rounds; see docs/federation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from logging import INFO
from pathlib import Path

from flwr.app import Context
from flwr.app.user_config import UserConfigValue
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from intarsia_aggregators.robust.base import RobustSettings
from intarsia_client.assignment import PRECISIONS, START_KINDS, TrainingParameters
from intarsia_client.base_model import BaseModel, linear_modules, load_base
from intarsia_client.errors import FederationError, InputError
from intarsia_client.messages import adapter_of, adapter_record
from intarsia_client.peft_files import write_encoded
from intarsia_client.shards import shard_from_file
from intarsia_platform.configuration_tables import ROBUST_RULES
from intarsia_platform.federation.guard import RobustGuard, RootTraining
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.roster import ask_names
from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.simulation.preparation import initial_adapter

app = ServerApp()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run's configuration; the keys are described in this app's ``pyproject.toml``.

    Args:
        base: The base model's path or hub identifier, as every node knows it.
        output: The folder to make; it must not exist, or be empty.
        task: ``"causal-lm"`` or ``"sequence-classification"``.
        labels: Class names in order, for classification.
        target_modules: Names of modules, or ``("all-linear",)``.
        ranks: Given to the nodes in turn.
        rounds: Rounds in all.
        minimum_nodes: Nodes that must be connected, and known by name, before a round begins.
        seed: Seed of sampling and of the clients' starts.
        training: How to train.
        method: A name of the aggregation catalogue.
        start: Where a node's round starts; empty for the method's own.
        broadcast_rank: Directions that nodes are sent; 0 leaves it to the method.
        residual_rank: Directions beyond those that the coordinator keeps.
        upload: Precision of what nodes send.
        download: Precision of what nodes are sent.
        max_examples: A node's declared number of records counts at most so much; 0 for no cap.
        rule: A name of the catalogue of robust rules, or ``"none"``.
        robust: What the rule assumes.
        root: The coordinator's own records, for ``"fltrust"``.
        node_deadline: Seconds to wait for the nodes, and again for their names.
        deadline: Seconds to wait for a round's updates, and for its measurements.
    """

    base: str
    output: Path
    task: str
    labels: tuple[str, ...]
    target_modules: tuple[str, ...]
    ranks: tuple[int, ...]
    rounds: int
    minimum_nodes: int
    seed: int
    training: TrainingParameters
    method: str
    start: str
    broadcast_rank: int
    residual_rank: int
    upload: str
    download: str
    max_examples: int
    rule: str
    robust: RobustSettings
    root: str
    node_deadline: float
    deadline: float


def read_settings(config: Mapping[str, UserConfigValue]) -> Settings:
    """Check a run's configuration before anything is loaded or asked.

    Args:
        config: Flower's run configuration, every key present.

    Returns:
        The settings.

    Raises:
        InputError: Naming the key.
    """
    output = Path(_text(config, "output"))
    if not output.is_absolute():
        raise InputError("run-config output", output, "give an absolute path at the coordinator")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("run-config output", output, "name a folder that is not there yet")
    ranks = _list(config, "ranks")
    if not ranks or not all(rank.isdecimal() and int(rank) for rank in ranks):
        raise InputError("run-config ranks", config["ranks"], "write them as in 4,16")
    return Settings(
        base=_text(config, "base"),
        output=output,
        task=_text(config, "task"),
        labels=_list(config, "labels"),
        target_modules=_list(config, "target-modules"),
        ranks=tuple(map(int, ranks)),
        rounds=_whole(config, "rounds", at_least=1),
        minimum_nodes=_whole(config, "minimum-nodes", at_least=1),
        seed=_whole(config, "seed", at_least=0),
        training=TrainingParameters(
            epochs=_whole(config, "epochs", at_least=1),
            batch_size=_whole(config, "batch-size", at_least=1),
            learning_rate=_positive(config, "learning-rate"),
            max_length=_whole(config, "max-length", at_least=2),
            keep_optimizer=_flag(config, "keep-optimizer"),
        ),
        method=_text(config, "method"),
        start=_choice(config, "start", ("", *START_KINDS)),
        broadcast_rank=_whole(config, "broadcast-rank", at_least=0),
        residual_rank=_whole(config, "residual-rank", at_least=0),
        upload=_choice(config, "upload", PRECISIONS),
        download=_choice(config, "download", PRECISIONS),
        max_examples=_whole(config, "max-examples", at_least=0),
        rule=_choice(config, "rule", ROBUST_RULES),
        robust=RobustSettings(
            max_norm=_number(config, "max-norm"),
            byzantine=_whole(config, "byzantine", at_least=0),
        ),
        root=str(config.get("root", "")),
        node_deadline=_positive(config, "node-deadline-seconds"),
        deadline=_positive(config, "deadline-seconds"),
    )


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation and write its adapter.

    Args:
        grid: Where the nodes are.
        context: With the run's configuration and identifier.

    Raises:
        FederationError: If too few nodes came or said their names, or no update was ever accepted.
        InputError: If the configuration is wrong.
        StorageError: If the adapter cannot be written.
    """
    settings = read_settings(context.run_config)
    base = load_base(settings.base, task=settings.task, labels=settings.labels, seed=settings.seed)
    every = settings.target_modules == ("all-linear",)
    plan = FederationPlan(
        run=f"flower-{context.run_id}",
        rounds=settings.rounds,
        seed=settings.seed,
        base=settings.base,
        base_digest=base.digest,
        task=settings.task,
        target_modules=linear_modules(base, "all-linear" if every else settings.target_modules),
        ranks=settings.ranks,
        labels=settings.labels,
        training=settings.training,
        start=settings.start,
        broadcast_rank=settings.broadcast_rank,
        residual_rank=settings.residual_rank,
        upload=settings.upload,
        download=settings.download,
        max_examples=settings.max_examples,
    )
    strategy = LoraStrategy(
        plan,
        method=settings.method,
        guard=_guard(settings, base),
        minimum_nodes=settings.minimum_nodes,
        node_deadline=settings.node_deadline,
    )
    names = ask_names(grid, strategy.nodes(grid), settings.node_deadline)
    if len(names) < settings.minimum_nodes:
        raise FederationError(
            "nodes that said their names", len(names), f"have {settings.minimum_nodes} answer"
        )
    log(INFO, "Sites: %s", ", ".join(f"{name} ({node})" for node, name in names.items()))
    strategy.plan = replace(strategy.plan, names=names)
    result = strategy.start(
        grid=grid,
        initial_arrays=adapter_record(initial_adapter(plan, base)),
        num_rounds=plan.rounds,
        timeout=settings.deadline,
    )
    _write(settings.output, strategy.plan, result)


def _guard(settings: Settings, base: BaseModel) -> RobustGuard | None:
    if settings.rule == "none":
        return None
    root = None
    if settings.root:
        label = "label" if settings.labels else None
        root = RootTraining(
            base, shard_from_file("server", Path(settings.root), label=label).records
        )
    return RobustGuard(settings.rule, settings.robust, root=root)


def _write(output: Path, plan: FederationPlan, result: Result) -> None:
    if not result.arrays:
        raise FederationError(
            "rounds with an accepted update", 0, "see the warnings above for why each was refused"
        )
    rounds = {
        str(number): dict(metrics) for number, metrics in result.train_metrics_clientapp.items()
    }
    encoded = adapter_of(result.arrays)
    write_encoded(
        output,
        encoded,
        manifest={
            "run": plan.run,
            "digest": encoded.digest,
            "base_digest": plan.base_digest,
            "nodes": {str(node): name for node, name in plan.names.items()},
            "rounds": rounds,
        },
    )
    log(INFO, "Adapter %s in %s", encoded.digest, output)


def _text(config: Mapping[str, UserConfigValue], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"run-config {key}", repr(value), "give a text")
    return value


def _list(config: Mapping[str, UserConfigValue], key: str) -> tuple[str, ...]:
    value = str(config.get(key, ""))
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _whole(config: Mapping[str, UserConfigValue], key: str, *, at_least: int) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"run-config {key}", value, f"give a whole number from {at_least}")
    return value


def _choice(config: Mapping[str, UserConfigValue], key: str, choices: tuple[str, ...]) -> str:
    value = config.get(key)
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(choice or "nothing" for choice in choices)
        raise InputError(f"run-config {key}", repr(value), f"choose one of {known}")
    return value


def _flag(config: Mapping[str, UserConfigValue], key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool):
        raise InputError(f"run-config {key}", repr(value), "give true or false")
    return value


def _number(config: Mapping[str, UserConfigValue], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"run-config {key}", repr(value), "give a number")
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"run-config {key}", value, "give a number of at least 0")
    return float(value)


def _positive(config: Mapping[str, UserConfigValue], key: str) -> float:
    number = _number(config, key)
    if not number > 0:
        raise InputError(f"run-config {key}", number, "give a positive number")
    return number
