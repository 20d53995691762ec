"""Mirrors one federation into MLflow: one run a federation, one batch of metrics a round.

MLflow mirrors what the database and the store already hold; it is never read back as truth, and
nothing that goes wrong with it stops a federation. All of it happens on a thread of its own, so
that neither MLflow's import nor its first-use migrations hold up the training beside them.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from intarsia_platform.results import Measured, RoundResult
from intarsia_platform.tracking.base import RunStatus
from intarsia_platform.tracking.values import (
    ROUND_MARKER,
    finite,
    flatten,
    measured_metrics,
    round_metrics,
    sanitized,
)

EXPERIMENT = "intarsia"
RUN_TAG = "intarsia.run"

_PARAMETERS_PER_BATCH = 100
_CREATION_SECONDS = 120.0
_FINISH_SECONDS = 60.0
_INTERRUPTED_SECONDS = 5.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class FederationTracker:
    """Mirrors one federation into MLflow, as a context manager.

    Every call returns at once; a thread does the work in the order of the calls. Leaving the
    context closes a run that :meth:`finish` has not closed: FINISHED, KILLED after an interrupt,
    FAILED after any other exception. The first thing that goes wrong is told once.

    Args:
        database: MLflow's SQLite file; made, with all of MLflow's migrations, where it is missing.
        artifacts: The folder under which runs keep their artifacts.
        warn: Takes the one line that says what went wrong; a log warning by default.
    """

    def __init__(
        self, *, database: Path, artifacts: Path, warn: Callable[[str], None] | None = None
    ) -> None:
        """Keep the places; nothing is touched yet."""
        self._database = database.absolute()
        self._artifacts = artifacts.absolute()
        self._warn = warn or logging.getLogger(__name__).warning
        self._warned = False
        self._tasks: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._creation: subprocess.Popen[str] | None = None
        self._run_id: str | None = None
        self._finished = False

    @property
    def run_id(self) -> str | None:
        """MLflow's name of the run, None until it is open."""
        return self._run_id

    def __enter__(self) -> Self:
        """Begin to prepare."""
        self.prepare_in_background()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is still open, with a deadline."""
        if exception_type is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(exception_type, Exception) else "KILLED")

    def prepare_in_background(self) -> None:
        """Start the thread that imports MLflow and makes its database; idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def start(
        self,
        *,
        run_name: str,
        configuration: Mapping[str, Any],
        tags: Mapping[str, str],
        existing_run_id: str | None = None,
    ) -> None:
        """Open the federation's run; a run of this name in the same home is continued.

        Args:
            run_name: The federation's name, unique in its home.
            configuration: Plain JSON by sections; becomes parameters such as ``train.epochs``.
            tags: More tags of the run.
            existing_run_id: The MLflow run to continue; found by ``run_name`` where it is None.
        """
        self.prepare_in_background()
        tags = {**tags, RUN_TAG: sanitized(run_name)}

        def task(client: Any) -> None:
            self._run_id = self._open_run(client, run_name, tags, existing_run_id)
            _log_parameters(client, self._run_id, flatten(configuration))

        self._tasks.put(task)

    def log_base(self, base: Measured) -> None:
        """Note the base model alone as step 0 of the test metrics.

        Args:
            base: What it reached on the server's held-out records.
        """
        metrics = finite(measured_metrics(base))
        if metrics:
            self._log(0, metrics, marker=next(iter(metrics)))

    def log_round(self, result: RoundResult) -> None:
        """Note a finished round in one batch; a round that MLflow already holds is left alone.

        Args:
            result: The round.
        """
        self._log(result.round, finite(round_metrics(result)), marker=ROUND_MARKER)

    def finish(self, status: RunStatus, artifacts: Sequence[Path] = ()) -> None:
        """Close the run and wait, with a deadline, until everything is in MLflow.

        Args:
            status: How the federation ended; whoever interrupts it is not kept waiting for long.
            artifacts: Files and folders to copy into the run; those that are missing are skipped.
        """
        if self._finished or self._thread is None:
            return
        self._finished = True

        def task(client: Any) -> None:
            if self._run_id is None:
                return
            for path in artifacts:
                if path.is_dir():
                    client.log_artifacts(self._run_id, str(path), artifact_path=path.name)
                elif path.is_file():
                    client.log_artifact(self._run_id, str(path))
            client.set_terminated(self._run_id, status=status)

        self._tasks.put(task)
        self._tasks.put(None)
        seconds = _INTERRUPTED_SECONDS if status == "KILLED" else _FINISH_SECONDS
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn_once(f"not done {seconds:.0f} seconds after the end")
            creation = self._creation
            if creation is not None:
                creation.kill()
                self._thread.join(5.0)

    def _work(self) -> None:
        client: Any = None
        try:
            client = self._connect()
        except Exception as error:
            self._warn_once(error)
        while (task := self._tasks.get()) is not None:
            if client is None:
                continue
            try:
                task(client)
            except Exception as error:
                self._warn_once(error)

    def _warn_once(self, reason: object) -> None:
        if self._warned:
            return
        self._warned = True
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        self._warn(
            f"MLflow in {self._database}: {lines[0]}; the federation goes on, only MLflow's view "
            "of it is incomplete"
        )

    def _connect(self) -> Any:
        if not self._database.exists():
            self._create_database()
        # MLflow reads these when it is imported.
        os.environ.update(_ENVIRONMENT)
        from mlflow.tracking import MlflowClient

        uri = tracking_uri(self._database)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def _create_database(self) -> None:
        """Have MLflow's own command line make a whole database, then move it into place.

        A process of its own, since Alembic's migrations share global state with any others that
        run in this one, and since they are not transactional: an interrupt must not leave half.
        """
        self._database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow.", dir=self._database.parent) as folder:
            fresh = Path(folder) / "mlflow.db"
            self._creation = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", tracking_uri(fresh)],
                env={**os.environ, **_ENVIRONMENT, "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            try:
                _, errors = self._creation.communicate(timeout=_CREATION_SECONDS)
            finally:
                self._creation.kill()
            if self._creation.returncode != 0:
                last = errors.strip().splitlines()[-1:] or ["no reason given"]
                raise RuntimeError(f"its database could not be made: {last[0]}")
            try:
                # Unlike a rename, a link never replaces what another process made meanwhile.
                self._database.hardlink_to(fresh)
            except FileExistsError:
                pass
            except OSError:
                fresh.replace(self._database)

    def _open_run(
        self, client: Any, run_name: str, tags: Mapping[str, str], existing_run_id: str | None
    ) -> str:
        experiment = self._experiment(client)
        run_id = existing_run_id
        if run_id is None:
            found = client.search_runs(
                [experiment], f"tags.`{RUN_TAG}` = '{tags[RUN_TAG]}'", max_results=1
            )
            run_id = found[0].info.run_id if found else None
        if run_id is None:
            run = client.create_run(experiment, tags=dict(tags), run_name=run_name)
            return str(run.info.run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id

    def _experiment(self, client: Any) -> str:
        """Find or make the experiment whose artifacts lie in this home.

        A home that was moved keeps its old experiment, whose artifacts point to the old place,
        and gets one beside it that is named after the new place.
        """
        location = self._artifacts.as_uri()
        for name in (EXPERIMENT, f"{EXPERIMENT} in {self._artifacts}"):
            found = client.get_experiment_by_name(name)
            if found is None:
                return str(client.create_experiment(name, artifact_location=location))
            if found.artifact_location == location:
                return str(found.experiment_id)
        raise RuntimeError(f"experiment {name} keeps its artifacts elsewhere")

    def _log(self, step: int, metrics: Mapping[str, float], *, marker: str) -> None:
        def task(client: Any) -> None:
            from mlflow.entities import Metric

            if self._run_id is None:
                return
            history = client.get_metric_history(self._run_id, marker)
            if any(entry.step == step for entry in history):
                return
            now = int(time.time() * 1000)
            batch = [Metric(key, value, now, step) for key, value in metrics.items()]
            client.log_batch(self._run_id, metrics=batch)

        self._tasks.put(task)


def tracking_uri(database: Path) -> str:
    """MLflow's address of a SQLite file, as ``mlflow ui --backend-store-uri`` takes it.

    Args:
        database: The file.

    Returns:
        Such as ``"sqlite:////home/ada/intarsia/mlflow.db"``.
    """
    return f"sqlite:///{quote(str(database.absolute()))}"


def _log_parameters(client: Any, run_id: str, parameters: Mapping[str, str]) -> None:
    """Log what the run does not hold yet: MLflow refuses to change a parameter."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in parameters.items() if key not in known]
    for first in range(0, len(new), _PARAMETERS_PER_BATCH):
        client.log_batch(run_id, params=new[first : first + _PARAMETERS_PER_BATCH])
