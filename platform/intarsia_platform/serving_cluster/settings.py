"""What replicas are made of, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from intarsia_platform.access.bearer import BearerTokens
from intarsia_platform.answering.settings import ServiceSettings
from intarsia_platform.gateway.settings import GatewaySettings


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """How many replicas there are, and what each takes. Checked when Ray is asked.

    Args:
        replicas: How many.
        gpus_per_replica: GPUs for each; a share of one, or a whole number. The base goes to one.
        cpus_per_replica: CPUs for each; None takes one of a cluster, and on this machine an equal
            share of its cores.
        ray_address: ``host:port`` of a Ray cluster; None takes ``RAY_ADDRESS``, else a Ray of this
            process's own.
        start_seconds: How long all may take to be ready.
    """

    replicas: int = 1
    gpus_per_replica: float = 0.0
    cpus_per_replica: float | None = None
    ray_address: str | None = None
    start_seconds: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """An issuer of bearer tokens, as :class:`BearerTokens` takes it.

    Args:
        keys: Its key set: a file or a URL.
        name: The issuer.
        audience: For whom tokens must be.
        claim: The claim that names the principal.
    """

    keys: str
    name: str
    audience: str
    claim: str = "sub"

    def tokens(self) -> BearerTokens:
        """Verifies its tokens."""
        return BearerTokens(self.keys, self.name, self.audience, self.claim)


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan:
    """What every replica opens. It holds no secret, since Ray keeps it.

    Args:
        home: The home's folder, the same for all. Where database and store are elsewhere, each
            node's environment says so (``INTARSIA_DATABASE_URL``, ``INTARSIA_STORE_URL``).
        base: The base, where the groups have several.
        answering: How each answers.
        limits: How each is served; they count for one replica.
        issuer: An issuer of bearer tokens.
    """

    home: Path
    base: str | None = None
    answering: ServiceSettings = field(default_factory=ServiceSettings)
    limits: GatewaySettings = field(default_factory=GatewaySettings)
    issuer: Issuer | None = None
