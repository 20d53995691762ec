"""From a configuration to everything a federation starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from intarsia_aggregators.catalog import find_method
from intarsia_aggregators.robust.base import RobustSettings
from intarsia_client.attachment import empty_adapter
from intarsia_client.base_model import BaseModel, linear_modules, load_base
from intarsia_client.errors import InputError
from intarsia_client.peft_files import EncodedAdapter, encode_adapter
from intarsia_client.privacy import planned_spend
from intarsia_client.records import Record, read_records
from intarsia_client.shards import ShardReference, write_shards

from intarsia_platform.configuration import SimulationConfiguration
from intarsia_platform.federation.client_contexts import VirtualClients
from intarsia_platform.federation.guard import RobustGuard, RootTraining
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.partition import partition_records, partition_test


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The records, split over clients.

    Args:
        labels: Class names in order; empty for language modelling.
        train: From each client's name to where its records lie.
        test: From each client's name to where its held-out records lie, where it has any.
        server: The records that the server measures on; empty where the configuration has none.
    """

    labels: tuple[str, ...]
    train: Mapping[str, ShardReference]
    test: Mapping[str, ShardReference]
    server: Sequence[Record]


def prepare_data(configuration: SimulationConfiguration, folder: Path) -> PreparedData:
    """Read, check and split the records.

    Args:
        configuration: The simulation.
        folder: Where the prepared shards are written.

    Returns:
        The split records.

    Raises:
        InputError: If a file is missing, empty or malformed, or a label in the test file is not in
            the training file.
        StorageError: If the folder cannot be written.
    """
    data, seed = configuration.data, configuration.federation.seed
    classifies = configuration.model.task == "sequence-classification"
    train = _read(configuration, data.train, "data.train")
    labels = tuple(sorted({record.label or "" for record in train})) if classifies else ()
    if classifies and len(labels) < 2:
        raise InputError("data.label", f"{len(labels)} class in data.train", "give at least two")
    server: list[Record] = []
    if data.test is not None:
        server = _read(configuration, data.test, "data.test")
        if classifies:
            _check_labels(server, labels, "data.test")
    parts = partition_records(
        train, rule=data.partition, clients=configuration.federation.clients, seed=seed
    )
    parts = dict(sorted(parts.items()))
    held_out = partition_test(server, train=parts, rule=data.partition, seed=seed) if server else {}
    return PreparedData(
        labels=labels,
        train=write_shards(folder / "train.jsonl", parts),
        test=write_shards(folder / "test.jsonl", {k: v for k, v in held_out.items() if v}),
        server=_sample(server, configuration.evaluation.max_records, seed),
    )


def prepare_base(configuration: SimulationConfiguration, labels: tuple[str, ...]) -> BaseModel:
    """Load the base model that the configuration names, once for this process.

    Args:
        configuration: The simulation.
        labels: Class names in order.

    Returns:
        The base model.

    Raises:
        InputError: If it is not there or not of the task's kind.
    """
    return load_base(
        configuration.model.base,
        task=configuration.model.task,
        labels=labels,
        seed=configuration.federation.seed,
    )


def prepare_plan(
    configuration: SimulationConfiguration, data: PreparedData, base: BaseModel
) -> FederationPlan:
    """The federation's plan, checked before anything is trained.

    Args:
        configuration: The simulation.
        data: The split records.
        base: The base model.

    Returns:
        The plan, still without a run's identifier.

    Raises:
        InputError: If a rank does not fit a layer, a key does not go with the method, or the
            privacy asked for cannot be reached.
    """
    federation, lora = configuration.federation, configuration.lora
    plan = FederationPlan(
        run="",
        rounds=federation.rounds,
        seed=federation.seed,
        base=configuration.model.base,
        base_digest=base.digest,
        task=configuration.model.task,
        target_modules=linear_modules(base, lora.target_modules),
        # Planned ranks come after; until then any rank stands for them.
        ranks=(1,) if isinstance(lora.ranks, str) else lora.ranks,
        alpha_over_rank=lora.alpha_over_rank,
        use_rslora=lora.use_rslora,
        labels=data.labels,
        fraction=federation.fraction,
        training=configuration.train,
        privacy=configuration.privacy,
        start=federation.start,
        upload=federation.upload,
        download=federation.download,
        broadcast_rank=federation.broadcast_rank,
        residual_rank=federation.residual_rank,
        max_examples=federation.max_examples,
        names=dict(enumerate(data.train, start=1)),
    ).using(find_method(federation.method))
    plan.check()
    if plan.privacy.unit != "none":
        _check_privacy(plan, data)
    return plan


def prepare_guard(
    configuration: SimulationConfiguration,
    plan: FederationPlan,
    data: PreparedData,
    base: BaseModel,
) -> RobustGuard | None:
    """What stands between a dishonest client and the sum.

    Args:
        configuration: The simulation.
        plan: The plan.
        data: The split records.
        base: The base model.

    Returns:
        The guard, or None where the configuration asks for no rule.

    Raises:
        InputError: If the rule lacks something, does not go with the plan, or needs more clients
            than a round asks.
    """
    robust, federation = configuration.robust, configuration.federation
    if robust.rule == "none":
        return None
    root = None
    if robust.rule == "fltrust":
        records = _read(configuration, robust.root, "robust.root")
        if data.labels:
            _check_labels(records, data.labels, "robust.root")
        root = RootTraining(base, records)
    settings = RobustSettings(max_norm=robust.max_norm, byzantine=robust.byzantine)
    guard = RobustGuard(robust.rule, settings, root=root)
    guard.check(find_method(federation.method), plan)
    cohort = max(1, round(federation.fraction * federation.clients))
    if cohort < guard.fewest:
        raise InputError(
            "robust.byzantine",
            robust.byzantine,
            f"a round asks {cohort} clients, and {robust.rule} needs at least {guard.fewest}",
        )
    return guard


def initial_adapter(plan: FederationPlan, base: BaseModel) -> EncodedAdapter:
    """The adapter that round 1 starts from: every module at rank 0, the head as the base has it.

    Args:
        plan: The plan.
        base: The base model.

    Returns:
        The encoded adapter.
    """
    return encode_adapter(empty_adapter(base, plan.target_modules))


def virtual_clients(plan: FederationPlan, data: PreparedData) -> VirtualClients:
    """The simulation's clients, each looked up when it is asked.

    Args:
        plan: The plan, which names the nodes.
        data: The split records.

    Returns:
        The clients.
    """

    def node_config(node: int) -> Mapping[str, str | int]:
        name = plan.names[node]
        config: dict[str, str | int] = {
            "client": name,
            **data.train[name].as_node_config("train"),
        }
        if name in data.test:
            config.update(data.test[name].as_node_config("test"))
        if plan.privacy.unit != "none":
            # A real client draws its secret itself; a simulated one must be repeatable.
            config["simulated-secret"] = f"{plan.seed}/{name}"
        return config

    return VirtualClients(node_ids=range(1, len(data.train) + 1), node_config=node_config)


def for_run(plan: FederationPlan, run: str) -> FederationPlan:
    """The plan under a run's identifier."""
    return dataclasses.replace(plan, run=run)


def _read(configuration: SimulationConfiguration, path: str, thing: str) -> list[Record]:
    data = configuration.data
    natural = data.partition == "natural"
    return read_records(
        Path(path),
        text=data.text,
        label=data.label,
        client=data.client,
        require_label=configuration.model.task == "sequence-classification"
        or data.partition.startswith("dirichlet"),
        require_client=natural and thing == "data.train",
        thing=thing,
    )


def _check_labels(records: Sequence[Record], labels: Sequence[str], thing: str) -> None:
    known = set(labels)
    for number, record in enumerate(records, start=1):
        if record.label not in known:
            raise InputError(
                f"label in {thing}, record {number}",
                record.label,
                "no record in data.train has it; correct it or train on it too",
            )


def _sample(records: Sequence[Record], limit: int, seed: int) -> Sequence[Record]:
    if not limit or len(records) <= limit:
        return records
    sequence = np.random.SeedSequence(seed, spawn_key=(3,))
    chosen = np.random.Generator(np.random.PCG64(sequence)).choice(
        len(records), size=limit, replace=False
    )
    return [records[index] for index in sorted(chosen)]


def _check_privacy(plan: FederationPlan, data: PreparedData) -> None:
    """Find out before the first round whether every client can keep its budget."""
    for count in sorted({reference.count for reference in data.train.values()}):
        planned_spend(count, plan.assignment(1, 1, 0, ""), ())
