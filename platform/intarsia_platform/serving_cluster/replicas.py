"""Replicas behind one address, on Ray Serve: started, kept alive, ended in order.

Ray Serve's proxy hands each request to one of two replicas drawn by chance, the one with fewer
requests. A replica that dies is started again; meanwhile the others answer.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError, StorageError
from starlette.middleware import Middleware

from intarsia_platform.answering.bases import BaseChoice, choose_base
from intarsia_platform.federation.ray_cluster import connect
from intarsia_platform.gateway.server import bind, url_of
from intarsia_platform.groups.store import Groups
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving_cluster.proxy import ProxyBodyLimit
from intarsia_platform.serving_cluster.replica import ingress_of
from intarsia_platform.serving_cluster.settings import ReplicaPlan, ReplicaSettings

APPLICATION = "intarsia"

_OBJECT_STORE_BYTES = 1 << 27
_HEALTH_SECONDS = 5.0
_LAST_SECONDS = 5.0
_CONSTRUCTOR_RETRIES = 3
_LOOK_SECONDS = 1.0


def served_base(plan: ReplicaPlan) -> BaseChoice:
    """The base that replicas answer with.

    Args:
        plan: What each replica opens.

    Returns:
        The base; nothing of it is loaded.

    Raises:
        InputError: If there is no such home, or it does not say which base.
    """
    home = Home.open(plan.home, create=False)
    with open_database(home.database_url) as database:
        groups = Groups(database, ContentStore(home.store_url)).list()
        return choose_base(groups, base=plan.base, classes=plan.answering.classes)


@contextlib.contextmanager
def running_replicas(
    plan: ReplicaPlan,
    settings: ReplicaSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    drain_seconds: float = 30.0,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Iterator[str]:
    """Run replicas of a home's gateway behind one address.

    Args:
        plan: What each replica opens. Its page of figures is left out where there are several:
            it would be another replica's each time. Ray Serve has its own.
        settings: How many there are, and where.
        host: Where to listen; on a cluster, of the node with Ray's head.
        port: A port; 0 for any that is free on this machine.
        drain_seconds: How long running answers may take when the block ends.
        certificate: Certificate chain for TLS, in PEM, a path on the node that listens.
        key: Its private key.

    Yields:
        Where they can be reached, once all are ready.

    Raises:
        FederationError: If Ray does not start or cannot be reached.
        InputError: If Ray Serve is not installed, Ray is too small, or the home cannot be served.
        StorageError: If the address cannot be taken, or the replicas do not become ready.
    """
    serve = _ray_serve()
    # What is wrong with the home is to be told here, and not by every replica again and again.
    served_base(plan)
    # Ray Serve takes the address itself; whether it can is found out here.
    with bind(host, port) as taken:
        url, port = url_of(taken, tls=certificate is not None), taken.getsockname()[1]
    connection = connect(
        address=settings.ray_address,
        workers=settings.replicas,
        cpus_per_worker=settings.cpus_per_replica,
        gpus_per_worker=settings.gpus_per_replica,
        object_store_bytes=_OBJECT_STORE_BYTES,
    )
    try:
        with _quiet():
            if settings.replicas > 1:
                plan = replace(plan, limits=replace(plan.limits, metrics=False))
            options = {
                "num_cpus": connection.needs.cpus,
                "num_gpus": connection.needs.gpus,
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(connection.needs.threads)}},
            }
            _start(serve, plan, host, port, certificate, key)
            _deploy(serve, plan, settings, options, drain_seconds)
        yield url
    finally:
        with _quiet():
            _end(serve, drain_seconds)
            connection.close()


def _ray_serve() -> Any:
    try:
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise InputError(
            "replicas",
            f"Ray Serve is not installed ({error})",
            "pip install 'intarsia-platform[replicas]', or serve without --replicas",
        ) from None


def _start(
    serve: Any, plan: ReplicaPlan, host: str, port: int, certificate: Path | None, key: Path | None
) -> None:
    """Start Ray Serve and its proxy; where a cluster has them already, they stay as they are."""
    limit = Middleware(ProxyBodyLimit, most=plan.limits.body_bytes)
    http: dict[str, Any] = {"host": host, "port": port, "middlewares": [limit]}
    if certificate is not None:
        # The key first: Ray Serve looks for it when it is given the certificate.
        http |= {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}
    with warnings.catch_warnings():
        # The other way that Ray Serve names takes a place in every node's environment.
        warnings.filterwarnings("ignore", message="Passing `middlewares`")
        serve.start(http_options=http)


def _deploy(
    serve: Any,
    plan: ReplicaPlan,
    settings: ReplicaSettings,
    options: dict[str, Any],
    drain_seconds: float,
) -> None:
    deployment = serve.deployment(
        name="Gateway",
        num_replicas=settings.replicas,
        # The gateway counts for itself, and tells its caller when there is no room.
        max_ongoing_requests=2 * plan.limits.requests,
        ray_actor_options=options,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=drain_seconds + _LAST_SECONDS,
        health_check_period_s=_HEALTH_SECONDS,
        max_constructor_retry_count=_CONSTRUCTOR_RETRIES,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(ingress_of(plan))
    target = serve.RunTarget(target=deployment.bind(), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    _await_ready(serve, settings.start_seconds)


def _await_ready(serve: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        found = serve.status().applications[APPLICATION]
        if found.status == "RUNNING":
            return
        if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            problem = found.message.strip().splitlines()
            raise StorageError(
                "replicas", problem[-1] if problem else "failed", "try with one, without Ray"
            )
        if time.monotonic() > end:
            raise StorageError(
                "replicas", f"not ready after {seconds:g} seconds", "give them more time, or memory"
            )
        time.sleep(_LOOK_SECONDS)


def _end(serve: Any, seconds: float) -> None:
    """Take the application down; whoever else serves on this cluster goes on."""
    with contextlib.suppress(Exception):
        serve.delete(APPLICATION, _blocking=False)
        end = time.monotonic() + seconds + 2 * _LAST_SECONDS
        while APPLICATION in (others := serve.status().applications) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        if not others:
            serve.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Serve's own lines are not what a person at the command line waits for."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
