"""``intarsia serve``: the gateway of a home, until a signal comes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from intarsia_client.errors import InputError

from intarsia_platform.cli.lines import say
from intarsia_platform.cli.output import check_json_place, present
from intarsia_platform.cli.retrieval_options import (
    Routing,
    Threshold,
    TopK,
    retrieval_settings,
)
from intarsia_platform.cli.settings import settings_of

if TYPE_CHECKING:
    from socket import socket

    from intarsia_platform.answering.settings import RetrievalSettings, ServiceSettings
    from intarsia_platform.cli.settings import Settings
    from intarsia_platform.gateway.settings import GatewaySettings, Telling
    from intarsia_platform.home import Home
    from intarsia_platform.serving_cluster.settings import Issuer

Host = Annotated[str, typer.Option("--host", metavar="H", help="Where to listen.")]
Port = Annotated[int, typer.Option("--port", metavar="P", help="0 takes any that is free.")]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="The base, where the groups have several."),
]
Rows = Annotated[int, typer.Option("--rows", metavar="N", help="Answers that run at once.")]
RowTokens = Annotated[
    int,
    typer.Option(
        "--row-tokens", metavar="N", help="A prompt and its answer; 0 for what the base takes."
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", metavar="N", help="Longest answer that may be asked for.")
]
PerPrincipal = Annotated[
    int,
    typer.Option("--requests-per-principal", metavar="N", help="Of one principal, at once."),
]
RequestSeconds = Annotated[
    float, typer.Option("--request-seconds", metavar="S", help="Longest time for one request.")
]
Tell = Annotated[
    str,
    typer.Option("--tell", metavar="WHAT", help="What an answer says: all, labels or nothing."),
]
Drain = Annotated[
    int, typer.Option("--drain-seconds", metavar="S", help="Time for answers when it is to end.")
]
Metrics = Annotated[bool, typer.Option("--metrics/--no-metrics", help="Figures at /metrics.")]
Console = Annotated[bool, typer.Option("--console/--no-console", help="The page at /console/.")]
KeySet = Annotated[
    str,
    typer.Option("--oidc-keys", metavar="PLACE", help="An issuer's JSON Web Key Set: file or URL."),
]
IssuerName = Annotated[str, typer.Option("--oidc-issuer", metavar="URL", help="The issuer.")]
Audience = Annotated[str, typer.Option("--oidc-audience", metavar="WORD", help="For whom.")]
Claim = Annotated[str, typer.Option("--oidc-claim", metavar="NAME", help="Names the principal.")]
Certificate = Annotated[
    Path | None, typer.Option("--tls-certificate", metavar="FILE", help="Speak TLS; PEM.")
]
PrivateKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key; PEM.")]

Replicas = Annotated[
    int,
    typer.Option(
        "--replicas", metavar="N", help="Several run on Ray Serve; limits count for each."
    ),
]
GpusPerReplica = Annotated[
    float, typer.Option("--gpus-per-replica", metavar="G", help="A share of one, or some.")
]

_LOOPBACK = ("127.", "::1")


def serve_command(
    context: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    base: Base = None,
    rows: Rows = 16,
    row_tokens: RowTokens = 0,
    max_tokens: MaxTokens = 1024,
    requests_per_principal: PerPrincipal = 8,
    request_seconds: RequestSeconds = 300.0,
    tell: Tell = "all",
    drain_seconds: Drain = 30,
    metrics: Metrics = True,
    console: Console = True,
    oidc_keys: KeySet = "",
    oidc_issuer: IssuerName = "",
    oidc_audience: Audience = "",
    oidc_claim: Claim = "sub",
    tls_certificate: Certificate = None,
    tls_key: PrivateKey = None,
    replicas: Replicas = 1,
    gpus_per_replica: GpusPerReplica = 0.0,
    top_k: TopK = 3,
    threshold: Threshold = "0.05",
    routing: Routing = "request",
) -> None:
    """Serve a home over HTTP.

    Args:
        context: The command's context.
        host: Where to listen.
        port: The port.
        base: The base model.
        rows: Answers that run at once.
        row_tokens: Tokens of a prompt and its answer.
        max_tokens: Longest answer.
        requests_per_principal: Requests of one principal at once.
        request_seconds: Longest time for one request.
        tell: What an answer says of its adapters.
        drain_seconds: Time for answers when it is to end.
        metrics: Whether there is a page of figures.
        console: Whether there is a console.
        oidc_keys: An issuer's keys.
        oidc_issuer: The issuer.
        oidc_audience: The audience.
        oidc_claim: The claim that names the principal.
        tls_certificate: Certificate chain.
        tls_key: Its private key.
        replicas: How many gateways with an engine each.
        gpus_per_replica: GPUs for each of several.
        top_k: Adapters that retrieval takes at most.
        threshold: Share of an adapter's own texts that a prompt must beat.
        routing: Where it is settled how much each retrieved adapter counts.
    """
    from intarsia_platform.gateway.settings import GatewaySettings

    telling = _telling(tell)
    _check_numbers(drain_seconds, replicas, gpus_per_replica)
    _check_files(tls_certificate, tls_key)
    limits = GatewaySettings(
        max_tokens=max_tokens,
        requests_per_principal=requests_per_principal,
        request_seconds=request_seconds,
        telling=telling,
        metrics=metrics,
        console=console,
    )
    retrieval = retrieval_settings(top_k, threshold, routing)
    serving = _Serving(
        host=host,
        port=port,
        base=base,
        answering=_answering(rows, row_tokens, request_seconds, retrieval),
        limits=limits,
        issuer=_issuer(oidc_keys, oidc_issuer, oidc_audience, oidc_claim),
        drain_seconds=drain_seconds,
        certificate=tls_certificate,
        key=tls_key,
        replicas=replicas,
        gpus_per_replica=gpus_per_replica,
    )
    serve = _serve if replicas == 1 else _serve_replicas
    serve(settings_of(context), serving)


def _answering(
    rows: int, row_tokens: int, request_seconds: float, retrieval: RetrievalSettings
) -> ServiceSettings:
    from intarsia_platform.answering.settings import ServiceSettings

    return ServiceSettings(
        max_rows=rows,
        row_tokens=row_tokens,
        ticket_seconds=max(300.0, request_seconds),
        retrieval=retrieval,
    )


def _telling(tell: str) -> Telling:
    from intarsia_platform.gateway.settings import Telling

    if tell not in tuple(Telling):
        raise InputError("--tell", tell, f"choose one of {', '.join(Telling)}")
    return Telling(tell)


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """The checked options."""

    host: str
    port: int
    base: str | None
    answering: ServiceSettings
    limits: GatewaySettings
    issuer: Issuer | None
    drain_seconds: int
    certificate: Path | None
    key: Path | None
    replicas: int
    gpus_per_replica: float


def _serve(settings: Settings, serving: _Serving) -> None:
    from intarsia_platform.gateway.server import bind

    check_json_place(settings)
    home = settings.open_home()
    # Before the libraries, which take seconds: an address that is taken is told at once.
    with bind(serving.host, serving.port) as taken:
        _serve_at(taken, home, settings, serving)


def _serve_at(taken: socket, home: Home, settings: Settings, serving: _Serving) -> None:
    from intarsia_platform.access.keys import ApiKeys
    from intarsia_platform.answering.service import open_service
    from intarsia_platform.gateway.app import create_app
    from intarsia_platform.gateway.callers import Callers
    from intarsia_platform.gateway.server import GatewayServer, url_of

    tokens = None if serving.issuer is None else serving.issuer.tokens()
    with open_service(home, base=serving.base, settings=serving.answering) as service:
        # A base that cannot answer is to be found now, not by the first caller.
        service.prepare()
        tls = serving.certificate is not None
        url = url_of(taken, tls=tls)
        _warn_of_clear_text(taken.getsockname()[0], tls=tls)
        if not service.policies_set:
            say("warning: no policies are set, so only the base may be used; intarsia policy set")

        def ready() -> None:
            result = {"url": url, "base": service.base.base, "base_digest": service.base.digest}
            present(settings, result, f"serving {service.base.base} at {url}")
            sys.stdout.flush()

        app = create_app(service, Callers(ApiKeys(service.database), tokens), serving.limits)
        server = GatewayServer(
            app,
            ready=ready,
            drain_seconds=serving.drain_seconds,
            certificate=serving.certificate,
            key=serving.key,
        )
        server.run(sockets=[taken])


def _serve_replicas(settings: Settings, serving: _Serving) -> None:
    from intarsia_platform.serving_cluster.replicas import running_replicas, served_base
    from intarsia_platform.serving_cluster.settings import ReplicaPlan, ReplicaSettings
    from intarsia_platform.serving_cluster.signals import until_signalled

    check_json_place(settings)
    plan = ReplicaPlan(
        home=settings.open_home().path,
        base=serving.base,
        answering=serving.answering,
        limits=serving.limits,
        issuer=serving.issuer,
    )
    chosen = served_base(plan)
    _warn_of_clear_text(serving.host, tls=serving.certificate is not None)

    def ready(url: str) -> None:
        result = {"url": url, "base": chosen.place, "base_digest": chosen.digest}
        line = f"serving {chosen.place} at {url}, {serving.replicas} replicas"
        present(settings, result, line)
        sys.stdout.flush()

    replicas = running_replicas(
        plan,
        ReplicaSettings(replicas=serving.replicas, gpus_per_replica=serving.gpus_per_replica),
        host=serving.host,
        port=serving.port,
        drain_seconds=serving.drain_seconds,
        certificate=serving.certificate,
        key=serving.key,
    )
    until_signalled(replicas, ready)


def _warn_of_clear_text(host: str, *, tls: bool) -> None:
    if not (tls or host == "localhost" or host.startswith(_LOOPBACK)):
        say("warning: keys and answers travel in clear; use --tls-certificate, or a proxy")


def _issuer(keys: str, name: str, audience: str, claim: str) -> Issuer | None:
    from intarsia_platform.serving_cluster.settings import Issuer

    if not (keys or name or audience):
        return None
    for option, value in (
        ("--oidc-keys", keys),
        ("--oidc-issuer", name),
        ("--oidc-audience", audience),
    ):
        if not value:
            raise InputError(option, "is missing", "give keys, issuer and audience together")
    issuer = Issuer(keys=keys, name=name, audience=audience, claim=claim)
    # What cannot be a key set's place is refused before anything is loaded.
    issuer.tokens()
    return issuer


def _check_numbers(drain_seconds: int, replicas: int, gpus_per_replica: float) -> None:
    if drain_seconds < 0:
        raise InputError("--drain-seconds", drain_seconds, "use a number from 0")
    if replicas < 1:
        raise InputError("--replicas", replicas, "use a number from 1")
    if gpus_per_replica and replicas == 1:
        raise InputError("--gpus-per-replica", gpus_per_replica, "use it with --replicas from 2")


def _check_files(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise InputError("TLS", "one file of two", "give --tls-certificate and --tls-key")
    for option, path in (("--tls-certificate", certificate), ("--tls-key", key)):
        if path is not None and not path.is_file():
            raise InputError(option, path, "name a file that can be read")
