"""A simulation from its configuration to its result."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from intarsia_aggregators.catalog import find_method
from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError, StorageError
from intarsia_client.files import write_bytes
from intarsia_client.peft_files import EncodedAdapter

from intarsia_platform.configuration import SimulationConfiguration
from intarsia_platform.configuration_tables import EngineConfiguration
from intarsia_platform.federation.cores import usable_cores
from intarsia_platform.federation.guard import RobustGuard
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.local_grid import LocalGrid
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.ray_grid import RayGrid
from intarsia_platform.federation.rounds import DurableFederation, RoundLimits
from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.home import Home
from intarsia_platform.planning.schedule import RankPlanning
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.journal import (
    ClientStates,
    RunJournal,
    create_run,
    latest_unfinished,
)
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.runs import digest_of_config
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.reporting import next_steps, write_report
from intarsia_platform.results import AdapterResult, ClientEvaluation, SimulationResult
from intarsia_platform.simulation.measurement import ServerMeasurement, measure_clients
from intarsia_platform.simulation.observer import SimulationObserver
from intarsia_platform.simulation.preparation import (
    PreparedData,
    for_run,
    initial_adapter,
    prepare_base,
    prepare_data,
    prepare_guard,
    prepare_plan,
    virtual_clients,
)
from intarsia_platform.simulation.ranks import prepare_ranks
from intarsia_platform.simulation.round_results import published_results, round_result
from intarsia_platform.tracking import FederationTracker, NullTracker, Tracker

CLIENT_APP = "intarsia_client.app:app"


@dataclass(frozen=True, kw_only=True)
class ReportWords:
    """What the report says above its figures.

    Args:
        title: The headline.
        introduction: A sentence or two.
        command: What was typed, so that it can be typed again; None where nothing was.
    """

    title: str = "A federation of LoRA adapters"
    introduction: str = ""
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run under way and everything it uses."""

    configuration: SimulationConfiguration
    home: Home
    journal: RunJournal
    ledger: PrivacyLedger
    store: ContentStore
    registry: AdapterRegistry
    plan: FederationPlan
    planning: RankPlanning | None
    data: PreparedData
    base: BaseModel
    guard: RobustGuard | None
    initial: EncodedAdapter
    observer: SimulationObserver


def simulate(
    configuration: SimulationConfiguration,
    *,
    home: Home,
    resume: bool = False,
    observer: SimulationObserver,
    words: ReportWords | None = None,
) -> SimulationResult:
    """Run a federation on this machine or a Ray cluster.

    Args:
        configuration: What to run.
        home: Where everything it leaves is kept.
        resume: Go on with the home's latest unfinished run instead of beginning one.
        observer: Is told what happens.
        words: What the report says above its figures.

    Returns:
        The result; its report and its adapter lie in the home.

    Raises:
        InputError: If the configuration, the data or the base model cannot be used, or there is
            nothing to resume.
        FederationError: If a round has too few accepted updates.
        StorageError: If the home cannot be written.
    """
    begun = time.monotonic()
    find_method(configuration.federation.method)
    with (
        _fixed_threads(configuration.engine),
        open_database(home.database_url) as database,
        _tracker(configuration, home, observer) as tracker,
    ):
        unfinished = _unfinished(database, configuration) if resume else None
        run = _prepare(configuration, home, database, unfinished, observer)
        try:
            with _grid(run, database) as grid:
                result = _federate(run, grid, tracker, begun, words or ReportWords())
        except KeyboardInterrupt:
            run.journal.set_status("interrupted")
            tracker.finish("KILLED")
            raise
        except BaseException:
            # A full disk must not hide what went wrong first.
            with contextlib.suppress(StorageError):
                run.journal.set_status("failed")
            tracker.finish("FAILED")
            raise
        run.journal.set_status("finished")
        return result


def _unfinished(database: Database, configuration: SimulationConfiguration) -> RunJournal:
    latest = latest_unfinished(database)
    if latest is None:
        raise InputError("--resume", "no unfinished run", "start one without --resume")
    row = latest.run_row()
    if row.config_digest != digest_of_config(configuration.as_mapping()):
        raise InputError(
            f"configuration to resume {row.id}",
            "is not the one it was begun with",
            "give the same file and --set options, or start anew without --resume",
        )
    return latest


def _prepare(
    configuration: SimulationConfiguration,
    home: Home,
    database: Database,
    unfinished: RunJournal | None,
    observer: SimulationObserver,
) -> _Run:
    observer.stage("reading the records")
    folder = home.runs / digest_of_config(configuration.as_mapping()).removeprefix("sha256:")[:16]
    data = prepare_data(configuration, folder)
    observer.stage("loading the base model")
    base = prepare_base(configuration, data.labels)
    plan, planning = prepare_ranks(
        configuration, prepare_plan(configuration, data, base), data, base
    )
    guard = prepare_guard(configuration, plan, data, base)
    journal = unfinished or create_run(
        database,
        name=Path(configuration.model.base).name,
        config=configuration.as_mapping(),
        seed=plan.seed,
        rounds=plan.rounds,
        base_digest=plan.base_digest,
    )
    journal.set_status("running")
    store = ContentStore(home.store_url)
    observer.run_begun(journal.run_id, plan.rounds, len(journal.published_rounds()))
    return _Run(
        configuration=configuration,
        home=home,
        journal=journal,
        ledger=PrivacyLedger(database),
        store=store,
        registry=AdapterRegistry(database, store),
        plan=for_run(plan, journal.run_id),
        planning=planning,
        data=data,
        base=base,
        guard=guard,
        initial=initial_adapter(plan, base),
        observer=observer,
    )


@contextlib.contextmanager
def _grid(run: _Run, database: Database) -> Iterator[LocalGrid]:
    engine = run.configuration.engine
    clients = virtual_clients(run.plan, run.data)
    states = ClientStates(database, run.journal.run_id)
    number = run.journal.run_row().number
    deadline = run.configuration.federation.deadline_seconds
    if engine.grid == "inprocess":
        grid: LocalGrid = InProcessGrid(
            CLIENT_APP, clients=clients, run_id=number, states=states, deadline_seconds=deadline
        )
    else:
        run.observer.stage("starting Ray")
        grid = RayGrid(
            CLIENT_APP,
            workers=engine.workers,
            gpus_per_worker=engine.gpus_per_worker,
            environment={"OMP_NUM_THREADS": str(_worker_threads(engine))},
            clients=clients,
            run_id=number,
            states=states,
            deadline_seconds=deadline,
        )
    with grid:
        yield grid


def _worker_threads(engine: EngineConfiguration) -> int:
    workers = engine.workers if engine.grid == "ray" else 1
    return engine.threads or max(1, usable_cores() // workers)


@contextlib.contextmanager
def _fixed_threads(engine: EngineConfiguration) -> Iterator[None]:
    """Sums in this process always over the same number of threads.

    With another number they come out in another order, and so in other bytes; the environment
    (``OMP_NUM_THREADS``) or another library must not decide that.
    """
    before = torch.get_num_threads()
    in_process = engine.grid == "inprocess"
    torch.set_num_threads(_worker_threads(engine) if in_process else usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _federate(
    run: _Run, grid: LocalGrid, tracker: Tracker, begun: float, words: ReportWords
) -> SimulationResult:
    configuration, plan = run.configuration, run.plan
    server = ServerMeasurement(
        run.base,
        run.data.server,
        max_length=plan.training.max_length,
        batch_size=plan.training.batch_size,
        every=configuration.evaluation.rounds,
        rounds=plan.rounds,
    )
    run.observer.stage("measuring the base alone")
    base_alone = server.base_alone()
    tracker.start(
        run_name=plan.run,
        configuration=configuration.as_mapping(),
        tags={"intarsia.run": plan.run},
    )
    tracker.log_base(base_alone)
    watch = _Watch(run, tracker)
    watch.tell_finished_rounds()
    strategy = LoraStrategy(plan, method=configuration.federation.method, guard=run.guard)
    federation = DurableFederation(
        strategy=strategy,
        grid=grid,
        journal=run.journal,
        ledger=run.ledger,
        store=run.store,
        registry=run.registry,
        initial=run.initial,
        limits=RoundLimits(
            deadline_seconds=configuration.federation.deadline_seconds,
            minimum_accepted=configuration.federation.minimum_accepted,
        ),
        evaluate=server.after_round,
        observer=watch,
        planning=run.planning,
        planned=run.observer.planned,
    )
    final = federation.run()
    result = SimulationResult(
        run=plan.run,
        base=base_alone,
        rounds=published_results(run.journal, run.ledger, plan.privacy),
        adapter=_export(run, final),
        clients=_measure_clients(run, strategy, grid, final),
        plan=federation.plans(),
        configuration=configuration.as_mapping(),
        seconds=time.monotonic() - begun,
        report=str(run.home.reports / plan.run / "report.html"),
    )
    return _report(run, result, tracker, words)


def _measure_clients(
    run: _Run, strategy: LoraStrategy, grid: LocalGrid, final: EncodedAdapter
) -> tuple[ClientEvaluation, ...]:
    configuration = run.configuration
    if not (configuration.evaluation.clients and run.data.test):
        return ()
    run.observer.stage("measuring every client's held-out records")
    return measure_clients(
        strategy,
        grid,
        run.data,
        initial=run.initial,
        federated=final,
        # A second training on the same records would spend privacy that nobody planned for.
        own_adapters=configuration.evaluation.own_adapters and run.plan.privacy.unit == "none",
        deadline_seconds=configuration.federation.deadline_seconds,
        progress=run.observer.client_measured,
    )


def _export(run: _Run, final: EncodedAdapter) -> AdapterResult:
    version = run.registry.get(final.digest)
    path = run.home.adapters / f"{run.plan.run}"
    if not path.exists():
        run.registry.export(final.digest, path)
    return AdapterResult(digest=version.digest, path=str(path), rank=version.rank)


def _report(
    run: _Run, result: SimulationResult, tracker: Tracker, words: ReportWords
) -> SimulationResult:
    run.observer.stage("writing the report")
    folder = run.home.reports / result.run
    report = write_report(
        folder / "report.html",
        result,
        title=words.title,
        introduction=words.introduction,
        command=words.command,
        steps=next_steps(
            result,
            home=run.home.path,
            mlflow_database=run.home.mlflow_database if run.configuration.tracking.mlflow else None,
        ),
    )
    configuration = folder / "configuration.json"
    write_bytes(configuration, json.dumps(dict(result.configuration), indent=2).encode() + b"\n")
    tracker.finish("FINISHED", [configuration, report, Path(result.adapter.path)])
    run.journal.set_mlflow_run(tracker.run_id)
    return result


class _Watch:
    """Turns the loop's events into results, for the observer and for MLflow."""

    def __init__(self, run: _Run, tracker: Tracker) -> None:
        self._run = run
        self._tracker = tracker

    def tell_finished_rounds(self) -> None:
        """Mirror what an earlier process finished, in case it was killed before it could."""
        privacy = self._run.plan.privacy
        for result in published_results(self._run.journal, self._run.ledger, privacy):
            self._tracker.log_round(result)

    def round_begun(self, number: int, cohort: int) -> None:
        """Pass it on."""
        self._run.observer.round_begun(number, cohort)

    def replied(self, number: int, client: str, status: str) -> None:
        """Pass it on."""
        self._run.observer.replied(number, client, status)

    def round_closed(self, number: int) -> None:
        """Read the round from the database and tell everyone."""
        run = self._run
        row = run.journal.published_rounds()[number - 1]
        result = round_result(run.journal, run.ledger, run.plan.privacy, row)
        run.observer.round_published(result)
        self._tracker.log_round(result)


def _tracker(
    configuration: SimulationConfiguration, home: Home, observer: SimulationObserver
) -> NullTracker | FederationTracker:
    if not configuration.tracking.mlflow:
        return NullTracker()
    return FederationTracker(
        database=home.mlflow_database, artifacts=home.mlflow_artifacts, warn=observer.warned
    )
