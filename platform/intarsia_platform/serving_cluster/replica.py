"""One replica: a process with the whole gateway, a base and an engine of its own.

Nothing is shared between replicas but the home. A ticket is made, let in and used in one of them;
the secret that it is checked with is the home's, so each would know another's. Each reads the epoch
before every call of its model, so what is revoked ends in all of them within a step.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI

from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.answering.service import AnsweringService, open_service
from intarsia_platform.gateway.app import create_app
from intarsia_platform.gateway.callers import Callers
from intarsia_platform.home import Home
from intarsia_platform.serving_cluster.settings import ReplicaPlan


class Replica:
    """The service of a home with its application.

    Args:
        plan: What to open.

    Raises:
        IntarsiaError: As :func:`open_service`.
    """

    def __init__(self, plan: ReplicaPlan) -> None:
        """Load the base and measure it; ready for requests after that."""
        with ExitStack() as open_:
            home = Home.open(plan.home, create=False)
            self.service: AnsweringService = open_.enter_context(
                open_service(home, base=plan.base, settings=plan.answering)
            )
            self.service.prepare()
            tokens = plan.issuer.tokens() if plan.issuer else None
            callers = Callers(ApiKeys(self.service.database), tokens)
            self.app: FastAPI = create_app(self.service, callers, plan.limits)
            self._open = open_.pop_all()

    def check(self) -> None:
        """Find out whether it can answer.

        A database that is out of reach is no reason to start again: it is out of reach for the
        next one too, and until it is back every answer is refused.

        Raises:
            RuntimeError: If its engine has ended.
        """
        if not self.service.alive:
            raise RuntimeError("the engine of this replica has ended")

    def close(self) -> None:
        """End every answer and give everything back; again does nothing."""
        self._open.close()


def ingress_of(plan: ReplicaPlan) -> Any:
    """The class that Ray Serve makes replicas of.

    Args:
        plan: What each opens.

    Returns:
        The class; requests go to the gateway's application as they come.
    """
    from ray import serve

    def build() -> FastAPI:
        replica = Replica(plan)
        replica.app.state.replica = replica
        return replica.app

    @serve.ingress(build)
    class Gateway:
        """A replica as Ray Serve sees it."""

        # What Ray Serve's decorator keeps of :func:`build`.
        _asgi_app: FastAPI

        def check_health(self) -> None:
            """Asked by Ray Serve now and then; a replica that raises is started again."""
            self._asgi_app.state.replica.check()

        def __del__(self) -> None:
            """Called by Ray Serve when the application has ended."""
            app = getattr(self, "_asgi_app", None)
            if app is not None:
                app.state.replica.close()

    return Gateway
