"""The Ray that simulations run on: one that is there already, or one of this process's own.

Where an address is known (given, or in ``RAY_ADDRESS``) or the process is connected already, that
cluster is used and never stopped. Otherwise a Ray just large enough is started on this machine and
goes when the grid does, its files included.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from intarsia_client.errors import FederationError, InputError

from intarsia_platform.federation.cores import usable_cores

# Read by Ray's own processes. Nothing is reported to its makers; and when this process is killed,
# and most of Ray with it, the last two do not spend a minute looking for the rest.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
_CONNECT_SECONDS = 10.0
_LOCAL_STARTS = 2
# What remains of a socket path's 107 bytes after Ray's own part and the folder's name.
_LONGEST_FOLDER = 27


@dataclass(frozen=True, kw_only=True)
class WorkerNeeds:
    """What the workers of a grid ask Ray for.

    Attributes:
        workers: How many there are.
        cpus: CPUs that Ray sets aside for each; a share of one is fine.
        gpus: GPUs for each; a share of one, or a whole number.
        threads: Threads that the numerical libraries of each may use.
    """

    workers: int
    cpus: float
    gpus: float
    threads: int


class RayConnection:
    """This process's connection to Ray; :meth:`close` it, or it closes when the process ends.

    Attributes:
        needs: What the workers may ask for on this cluster.
    """

    def __init__(self, needs: WorkerNeeds, leave: Callable[[], None]) -> None:
        """Keep the way out, and make sure that it is taken."""
        self.needs = needs
        self._leave: Callable[[], None] | None = leave
        atexit.register(self.close)

    def close(self) -> None:
        """Leave Ray as it was found; harmless when called again."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
            atexit.unregister(self.close)


def connect(
    *,
    address: str | None,
    workers: int,
    cpus_per_worker: float | None,
    gpus_per_worker: float,
    object_store_bytes: int,
) -> RayConnection:
    """Connect to Ray and make sure that it is large enough.

    Args:
        address: ``host:port`` of a cluster; where None, ``RAY_ADDRESS``, else a Ray of this
            process's own, as for ``"local"``. A process that is connected already stays so.
        workers: How many workers shall run.
        cpus_per_worker: CPUs for each. Where None, each worker takes one CPU of a cluster, and on
            a Ray of this process's own an equal share of the machine's cores.
        gpus_per_worker: GPUs for each.
        object_store_bytes: Size of the object store of a Ray of this process's own, in bytes.

    Returns:
        The connection.

    Raises:
        InputError: If an argument is out of range, or the cluster lacks the CPUs or GPUs.
        FederationError: If no cluster answers at the address, or Ray does not start.
    """
    _check(workers, cpus_per_worker, gpus_per_worker)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local" and not _is_address(address):
        raise InputError("Ray's address", address, "write it as host:port")
    found = ray.is_initialized() or address != "local"
    share = 1 if found else max(1, usable_cores() // workers)
    needs = WorkerNeeds(
        workers=workers,
        cpus=cpus_per_worker or 1.0,
        gpus=gpus_per_worker,
        threads=share if cpus_per_worker is None else max(1, int(cpus_per_worker)),
    )
    if ray.is_initialized():
        connection = RayConnection(needs, _stay)
    elif found:
        _join(address)
        connection = RayConnection(needs, _leave)
    else:
        connection = RayConnection(needs, _start(needs, object_store_bytes))
    try:
        _check_size(needs)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(workers: int, cpus: float | None, gpus: float) -> None:
    if workers < 1:
        raise InputError("workers", workers, "give a whole number of at least 1")
    if cpus is not None and not (math.isfinite(cpus) and cpus > 0):
        raise InputError("cpus_per_worker", cpus, "give a positive number")
    if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise InputError("gpus_per_worker", gpus, "give a share from 0 to 1, or a whole number")


def _is_address(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal()


def _stay() -> None:
    """Leave a connection alone that was there before."""


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would wait a minute and then end the process.
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        _init(address=address)
    except (OSError, RuntimeError, ValueError) as error:
        raise FederationError(
            "Ray cluster",
            address,
            f"start it, or unset RAY_ADDRESS to use this machine ({_first_line(error)})",
        ) from error


def _start(needs: WorkerNeeds, object_store_bytes: int) -> Callable[[], None]:
    folder: Path | None = None

    def leave() -> None:
        _leave()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    for attempt in range(_LOCAL_STARTS):
        try:
            folder = _folder()
            _init(
                address="local",
                num_cpus=math.ceil(needs.workers * needs.cpus),
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                _temp_dir=str(folder),
            )
        except BaseException as error:
            leave()
            if not isinstance(error, Exception):
                raise
            # Ray's start is now and then too slow for Ray itself on a busy machine.
            if attempt + 1 == _LOCAL_STARTS:
                raise FederationError(
                    "Ray on this machine",
                    f"did not start: {_first_line(error)}",
                    "free memory and ports, or use the in-process grid",
                ) from error
        else:
            break
    return leave


def _folder() -> Path:
    """Make a folder for Ray's files whose path is short enough for its sockets.

    Raises:
        OSError: If none can be made.
    """
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    # Where the usual place lies too deep, the place that every POSIX system has.
    short = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="ray-", dir=short))


def _init(**options: Any) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # A tip about a future Ray, which nobody at the command line can act on.
        warnings.simplefilter("ignore", FutureWarning)
        terminate = signal.getsignal(signal.SIGTERM)
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            # Ray puts its own handler there; whoever had one before wants to end in order.
            signal.signal(signal.SIGTERM, terminate)
    # Ray would still print to standard output when a worker ends, where results belong.
    ray._private.worker._worker_logs_enabled = False


def _leave() -> None:
    ray.shutdown()
    ray._private.worker._worker_logs_enabled = True


def _check_size(needs: WorkerNeeds) -> None:
    has = ray.cluster_resources()
    for thing, resource, each in (
        ("gpus_per_worker", "GPU", needs.gpus),
        ("cpus_per_worker", "CPU", needs.cpus),
    ):
        wanted, there = each * needs.workers, has.get(resource, 0.0)
        if wanted > there:
            raise InputError(
                thing,
                f"{each:g} for {needs.workers} workers makes {wanted:g}",
                f"Ray has {there:g} {resource}s here: ask for less, or use fewer workers",
            )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
