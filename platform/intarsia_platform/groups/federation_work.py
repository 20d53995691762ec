"""One federation of a group's clients: run to its end, then its clients asked to describe texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from intarsia_client.base_model import BaseModel, load_base
from intarsia_client.errors import InputError
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.shards import ShardReference

from intarsia_platform.configuration import SimulationConfiguration
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.groups.describing import encoder_of
from intarsia_platform.groups.joint_description import SITE_APP, JointDescriber, JointDescription
from intarsia_platform.groups.restricted import RestrictedFederation
from intarsia_platform.groups.rows import GroupSettings
from intarsia_platform.groups.site_app import Question
from intarsia_platform.home import Home
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import RunJournal, list_runs
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.results import RoundResult
from intarsia_platform.simulation.observer import SimulationObserver
from intarsia_platform.simulation.round_results import published_results
from intarsia_platform.simulation.run import simulate


@dataclass(frozen=True, kw_only=True)
class FinishedFederation:
    """What a federation's own home holds at its end.

    Args:
        encoded: The last round's adapter.
        contributed: Names of the clients of whom an update was accepted.
        rounds: The rounds.
    """

    encoded: EncodedAdapter
    contributed: frozenset[str]
    rounds: tuple[RoundResult, ...] = field(repr=False)


def run_federation(
    configuration: SimulationConfiguration, home: Home, observer: SimulationObserver
) -> FinishedFederation:
    """Run what is left of a federation that has a home of its own.

    Args:
        configuration: The federation.
        home: Its home; nothing else ever ran there.
        observer: Is told what happens.

    Returns:
        What it ends with; the same whether or not it was killed on the way.

    Raises:
        InputError: If the configuration cannot be used.
        FederationError: If a round has too few accepted updates.
        StorageError: If the home cannot be written.
    """
    with open_database(home.database_url) as database:
        runs = list_runs(database)
    if not runs or runs[-1].status != "finished":
        simulate(configuration, home=home, resume=bool(runs), observer=observer)
    with open_database(home.database_url) as database:
        journal = RunJournal(database, list_runs(database)[-1].id)
        rows = journal.published_rounds()
        registry = AdapterRegistry(database, ContentStore(home.store_url))
        return FinishedFederation(
            encoded=registry.encoded(rows[-1].result_digest or ""),
            contributed=frozenset(
                part.client
                for row in rows
                for part in journal.participations(row.number)
                if part.status == "accepted"
            ),
            rounds=published_results(journal, PrivacyLedger(database), configuration.privacy),
        )


def base_of(restricted: RestrictedFederation) -> BaseModel:
    """The base that a federation trains on, as its clients load it.

    Args:
        restricted: The federation.

    Returns:
        The base.

    Raises:
        InputError: If it is another model now.
    """
    configuration = restricted.configuration
    model = configuration.model
    classes: tuple[str, ...] = ()
    if model.task == "sequence-classification":
        records = [record for some in restricted.train.values() for record in some]
        classes = tuple(sorted({record.label or "" for record in records}))
    base = load_base(
        model.base, task=model.task, labels=classes, seed=configuration.federation.seed
    )
    if base.digest != restricted.base_digest:
        raise InputError("model.base", f"{model.base} changed meanwhile", "run the command again")
    return base


def federated_settings(
    restricted: RestrictedFederation, base: BaseModel, *, descriptor: str, encoder: str
) -> GroupSettings:
    """How a federation trains, as groups say it.

    Args:
        restricted: The federation.
        base: Its base.
        descriptor: Name of the descriptor method.
        encoder: Name of the encoder.

    Returns:
        The settings; the rank is left to the adapter that comes of it.
    """
    configuration = restricted.configuration
    train, modules = configuration.train, configuration.lora.target_modules
    named = (modules,) if isinstance(modules, str) else modules
    return GroupSettings(
        alpha_over_rank=configuration.lora.alpha_over_rank,
        target_modules=() if modules == "all-linear" else named,
        epochs=train.epochs,
        batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        max_length=train.max_length,
        seed=configuration.federation.seed,
        classes=base.labels,
        descriptor=descriptor,
        encoder=encoder,
        clients=tuple(restricted.train),
        rounds=configuration.federation.rounds,
    )


def describe_with_clients(
    base: BaseModel,
    settings: GroupSettings,
    references: Mapping[str, ShardReference],
    clients: Collection[str],
    *,
    seconds: float,
) -> JointDescription:
    """Have clients describe their texts, each its own, and join what they say.

    Args:
        base: The base, nothing attached to it.
        settings: The group's settings.
        references: From each client's name to where its records lie.
        clients: Names of those to ask.
        seconds: How long each exchange may take.

    Returns:
        The descriptor and who took part.

    Raises:
        FederationError: If no client could describe its texts.
        InputError: If the method or the encoder cannot be used.
    """
    names = dict(enumerate(sorted(clients), start=1))
    asked = [
        VirtualClient(
            node_id=node,
            node_config={"client": name, **references[name].as_node_config("train")},
        )
        for node, name in names.items()
    ]
    question = Question(
        method=settings.descriptor,
        encoder=settings.encoder,
        base=base.base,
        task=base.task,
        labels=base.labels,
        seed=settings.seed,
        most=0,
    )
    with InProcessGrid(SITE_APP, clients=asked, deadline_seconds=seconds) as grid:
        describer = JointDescriber(
            grid, names, encoder_of(base, settings), deadline_seconds=seconds
        )
        return describer.describe(question)
