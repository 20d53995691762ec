"""Against the real MLflow, with one SQLite database for the whole module."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from intarsia_platform.results import Measured, RefusedClient, RoundResult, RuleDecision
from intarsia_platform.tracking import FederationTracker, NullTracker, Tracker, tracking_uri
from intarsia_platform.tracking.values import LONGEST_PARAMETER, finite, flatten, round_metrics


class Place:
    """The module's MLflow, and what went wrong in it."""

    def __init__(self, home: Path) -> None:
        self.database = home / "mlflow.db"
        self.artifacts = home / "mlartifacts"
        self.warnings: list[str] = []

    def tracker(self) -> FederationTracker:
        return FederationTracker(
            database=self.database, artifacts=self.artifacts, warn=self.warnings.append
        )

    def client(self):
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=tracking_uri(self.database))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("home with a space, 100%25?#"))
    with made.tracker() as tracker:
        start(tracker, "first")
        tracker.log_round(of_round(1))
        # The calls have returned while the database is still being made.
        assert not made.database.exists()
    assert made.warnings == []
    assert made.database.exists()
    assert not list(made.database.parent.glob(".mlflow.*"))
    assert steps(made, tracker.run_id, "rank") == [(1, 32.0)]
    return made


@pytest.fixture(autouse=True)
def no_unexpected_warning(place: Place) -> Iterator[None]:
    yield
    unexpected = list(place.warnings)
    place.warnings.clear()
    assert unexpected == []


def of_round(number: int, *, loss: float = 2.0, **changes: object) -> RoundResult:
    fields: dict[str, object] = {
        "round": number,
        "test": Measured(loss=loss, perplexity=math.exp(loss)),
        "bytes_up": 100 * number,
        "bytes_down": 50 * number,
        "seconds": 0.5,
        "accepted": 3,
        "rank": 32,
    }
    return RoundResult(**{**fields, **changes})  # type: ignore[arg-type]


def start(tracker: Tracker, run_name: str, **configuration: object) -> None:
    tracker.start(run_name=run_name, configuration=configuration, tags={"method": "ledger"})


def steps(place: Place, run_id: str | None, metric: str) -> list[tuple[int, float]]:
    history = place.client().get_metric_history(run_id, metric)
    return [(entry.step, entry.value) for entry in history]


def test_a_run_holds_parameters_metrics_tags_and_artifacts(place: Place, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('base = "x"\n')
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with place.tracker() as tracker:
        start(tracker, "whole", train={"epochs": 1}, lora={"ranks": [4, 8]})
        tracker.log_base(Measured(loss=3.0, perplexity=math.exp(3.0)))
        tracker.log_round(of_round(1, loss=2.5))
        refused = (RefusedClient(client="Ahorn", reason="not-finite"),)
        tracker.log_round(of_round(2, loss=2.0, refused=refused, epsilon_max=1.25))
        missing = tmp_path / "report.html"
        tracker.finish("FINISHED", [tmp_path / "config.toml", adapter, missing])

    client = place.client()
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "whole"
    assert run.data.params == {"train.epochs": "1", "lora.ranks": "[4, 8]"}
    assert run.data.tags["method"] == "ledger"
    assert client.get_experiment(run.info.experiment_id).name == "intarsia"
    assert steps(place, tracker.run_id, "test.loss") == [(0, 3.0), (1, 2.5), (2, 2.0)]
    assert steps(place, tracker.run_id, "bytes.up") == [(1, 100.0), (2, 200.0)]
    assert steps(place, tracker.run_id, "refused.not-finite") == [(2, 1.0)]
    assert steps(place, tracker.run_id, "epsilon.max") == [(2, 1.25)]
    assert {entry.path for entry in client.list_artifacts(tracker.run_id)} == {
        "config.toml",
        "adapter",
    }
    files = [entry.path for entry in client.list_artifacts(tracker.run_id, "adapter")]
    assert files == ["adapter/adapter_config.json"]
    assert run.info.artifact_uri.startswith(place.artifacts.as_uri())


def test_a_round_is_one_batch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    batches: list[set[int]] = []
    original = MlflowClient.log_batch

    def counted(self, run_id, metrics=(), params=(), tags=(), synchronous=None):  # type: ignore
        if metrics:
            batches.append({metric.step for metric in metrics})
        return original(self, run_id, metrics, params, tags, synchronous)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    for single in ("log_metric", "log_param", "set_tag"):
        monkeypatch.delattr(MlflowClient, single)
    with place.tracker() as tracker:
        start(tracker, "batches", train={"epochs": 1})
        for number in (1, 2, 3):
            tracker.log_round(of_round(number))
    assert batches == [{1}, {2}, {3}]


def test_a_resumed_run_continues_without_a_row_twice(place: Place) -> None:
    with pytest.raises(KeyboardInterrupt), place.tracker() as first:
        start(first, "resumed", train={"epochs": 1})
        first.log_base(Measured(loss=3.0))
        first.log_round(of_round(1))
        first.log_round(of_round(2))
        raise KeyboardInterrupt
    assert place.client().get_run(first.run_id).info.status == "KILLED"

    with place.tracker() as second:
        # A parameter that changed must not stop the rest: MLflow's parameters are immutable.
        start(second, "resumed", train={"epochs": 2}, engine={"workers": 2})
        second.log_base(Measured(loss=3.0))
        for number in (1, 2, 3):
            second.log_round(of_round(number))
        second.finish("FINISHED")

    assert second.run_id == first.run_id
    run = place.client().get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "1", "engine.workers": "2"}
    assert [step for step, _ in steps(place, second.run_id, "test.loss")] == [0, 1, 2, 3]
    assert [step for step, _ in steps(place, second.run_id, "bytes.up")] == [1, 2, 3]


def test_a_run_is_continued_by_its_own_name_in_mlflow(place: Place) -> None:
    with place.tracker() as first:
        start(first, "named")
    with place.tracker() as second:
        second.start(run_name="other", configuration={}, tags={}, existing_run_id=first.run_id)
        second.log_round(of_round(1))
    assert second.run_id == first.run_id
    assert steps(place, first.run_id, "rank") == [(1, 32.0)]


def test_a_failed_federation_is_shown_as_failed(place: Place) -> None:
    with pytest.raises(ValueError, match="no client"), place.tracker() as tracker:
        start(tracker, "failed")
        raise ValueError("no client")
    assert place.client().get_run(tracker.run_id).info.status == "FAILED"


def test_numbers_that_are_not_finite_are_left_out(place: Place) -> None:
    with place.tracker() as tracker:
        start(tracker, "infinite")
        tracker.log_base(Measured(loss=math.nan, perplexity=math.inf))
        diverged = Measured(loss=800.0, perplexity=math.inf)
        tracker.log_round(of_round(1, test=diverged, epsilon_max=math.inf))
    data = place.client().get_run(tracker.run_id).data.metrics
    assert data["test.loss"] == 800.0
    assert "test.perplexity" not in data
    assert "epsilon.max" not in data


def test_names_that_mlflow_refuses_or_reads_as_quotes(place: Place) -> None:
    with place.tracker() as tracker:
        start(tracker, "it's `odd` \\", **{"a/../b": {"c=d": 1}})
        refused = (RefusedClient(client="x", reason="rank > cap!"),)
        decided = RuleDecision(
            client="x", outcome="left-out", share_before=0.5, share=0.0, factor=1.0
        )
        tracker.log_round(of_round(1, refused=refused, decisions=(decided,), cut_energy=0.25))
    with place.tracker() as again:
        start(again, "it's `odd` \\")
    assert again.run_id == tracker.run_id
    data = place.client().get_run(tracker.run_id).data
    assert data.params == {"a_.._b.c_d": "1"}
    assert data.metrics["refused.rank _ cap_"] == 1.0
    assert data.metrics["rule.left-out"] == 1.0
    assert (data.metrics["energy.cut"], data.metrics["energy.residual"]) == (0.25, 0.0)


def test_two_federations_of_one_home_share_the_experiment_and_not_the_run(place: Place) -> None:
    with place.tracker() as first, place.tracker() as second:
        start(first, "left")
        start(second, "right")
    assert first.run_id != second.run_id
    runs = [
        place.client().get_run(each).info.experiment_id for each in (first.run_id, second.run_id)
    ]
    assert runs[0] == runs[1]


def test_a_home_that_moved_writes_nothing_to_its_old_place(place: Place, tmp_path: Path) -> None:
    with place.tracker() as before:
        start(before, "before the move")
    report = tmp_path / "report.html"
    report.write_text("<p>moved</p>")
    moved = FederationTracker(
        database=place.database, artifacts=tmp_path / "new", warn=place.warnings.append
    )
    with moved:
        start(moved, "after the move")
        moved.finish("FINISHED", [report])
    run = place.client().get_run(moved.run_id)
    assert run.info.artifact_uri.startswith((tmp_path / "new").as_uri())
    assert list((tmp_path / "new").rglob("report.html"))


def test_what_goes_wrong_is_one_line_and_never_an_exception(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"this is no database" * 100)
    warnings: list[str] = []
    tracker = FederationTracker(
        database=database, artifacts=tmp_path / "artifacts", warn=warnings.append
    )
    with tracker:
        start(tracker, "broken")
        tracker.log_round(of_round(1))
        tracker.finish("FINISHED", [tmp_path])
    assert tracker.run_id is None
    [line] = warnings
    assert "\n" not in line
    assert str(database) in line
    assert "the federation goes on" in line


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    tracker = FederationTracker(
        database=tmp_path / "file" / "mlflow.db",
        artifacts=tmp_path / "file" / "artifacts",
        warn=warnings.append,
    )
    with tracker:
        start(tracker, "nowhere")
    assert len(warnings) == 1


INTERRUPTED = """
import sys, time
from pathlib import Path
from intarsia_platform.tracking import FederationTracker

home = Path(sys.argv[1])
with FederationTracker(database=home / "mlflow.db", artifacts=home / "mlartifacts") as tracker:
    tracker.start(run_name="interrupted", configuration={}, tags={})
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_while_preparing_leaves_a_whole_database_or_none(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == b"ready\n"
        time.sleep(1.0)
        process.send_signal(number)
        process.wait(timeout=90)
    if number == signal.SIGINT:
        assert not list(tmp_path.glob(".mlflow.*"))
    if (tmp_path / "mlflow.db").exists():
        warnings: list[str] = []
        tracker = FederationTracker(
            database=tmp_path / "mlflow.db",
            artifacts=tmp_path / "mlartifacts",
            warn=warnings.append,
        )
        with tracker:
            start(tracker, "interrupted")
        assert warnings == []
        assert tracker.run_id is not None


def test_telemetry_is_off_once_mlflow_is_imported(place: Place) -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()


def test_no_thread_stays_behind(place: Place) -> None:
    with place.tracker() as tracker:
        start(tracker, "threads")
    assert not [thread for thread in threading.enumerate() if thread.name == "mlflow"]


def test_the_null_tracker_is_a_tracker() -> None:
    tracker: Tracker
    with NullTracker() as null:
        tracker = null
        tracker.prepare_in_background()
        start(tracker, "nothing")
        tracker.log_base(Measured())
        tracker.log_round(of_round(1))
        tracker.finish("FINISHED", [])
        assert tracker.run_id is None


def test_parameters_are_flat_and_bounded() -> None:
    flat = flatten({"a": {"b": {"c": None}, "d": True}, "e": "x" * 2000, "f": {}})
    assert flat["a.b.c"] == "null"
    assert flat["a.d"] == "true"
    assert len(flat["e"]) == LONGEST_PARAMETER
    assert set(flat) == {"a.b.c", "a.d", "e"}


def test_every_round_has_the_marker_that_resuming_looks_for() -> None:
    bare = of_round(1, test=None, accepted=0)
    assert finite(round_metrics(bare))["clients.accepted"] == 0.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def asked(url: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - a loopback address
        url, data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return answer.read()


@pytest.mark.slow
def test_mlflow_ui_serves_the_run(place: Place, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>a report</p>")
    with place.tracker() as tracker:
        start(tracker, "served", train={"epochs": 1})
        tracker.log_round(of_round(1, loss=2.5))
        tracker.finish("FINISHED", [report])

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(port)]
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--backend-store-uri", tracking_uri(place.database)],
            cwd=tmp_path,
            # What it could run in the background, in ten more processes.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                asked(f"{address}/health")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        api = f"{address}/api/2.0/mlflow"
        run = json.loads(asked(f"{api}/runs/get?run_id={tracker.run_id}"))["run"]
        history = json.loads(
            asked(f"{api}/metrics/get-history?run_id={tracker.run_id}&metric_key=test.loss")
        )
        artifact = asked(f"{address}/get-artifact?run_id={tracker.run_id}&path=report.html")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=10)
    assert run["info"]["run_name"] == "served"
    assert {entry["key"]: entry["value"] for entry in run["data"]["params"]} == {
        "train.epochs": "1"
    }
    assert [(entry["step"], entry["value"]) for entry in history["metrics"]] == [(1, 2.5)]
    assert artifact == report.read_bytes()
