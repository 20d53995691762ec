"""The whole gateway as one application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from intarsia_client.errors import InputError, IntarsiaError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from intarsia_platform.access.refusal import shown
from intarsia_platform.answering.service import AnsweringService
from intarsia_platform.gateway.callers import Authentication, Callers
from intarsia_platform.gateway.core import Gateway
from intarsia_platform.gateway.edge import BodyLimit, Edge
from intarsia_platform.gateway.failures import Failure, failure_from
from intarsia_platform.gateway.pages import page_routes, steward_routes
from intarsia_platform.gateway.routes import openai_routes, plain_routes
from intarsia_platform.gateway.settings import GatewaySettings
from intarsia_platform.gateway.stewardship import Stewardship


def create_app(
    service: AnsweringService, callers: Callers, settings: GatewaySettings | None = None
) -> FastAPI:
    """Make the application.

    Args:
        service: What answers; the caller opens and closes it.
        callers: Finds out who asks.
        settings: How it serves.

    Returns:
        The application, for one event loop.
    """
    gateway = Gateway(service, settings or GatewaySettings())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keeping = asyncio.create_task(gateway.keeper.keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            gateway.close()

    # Its pages of documentation would load scripts from elsewhere.
    app = FastAPI(
        title="Intarsia", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.gateway = gateway
    app.include_router(openai_routes(gateway))
    app.include_router(plain_routes(gateway))
    if gateway.settings.console:
        app.include_router(page_routes())
        app.include_router(steward_routes(gateway, Stewardship(service.database)))
    app.add_exception_handler(IntarsiaError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    # The last one added stands first: nobody's body is read before it is known who asks.
    limits = gateway.settings
    app.add_middleware(BodyLimit, most=limits.body_bytes, seconds=limits.body_seconds)
    app.add_middleware(Authentication, callers=callers, threads=gateway.threads)
    app.add_middleware(Edge, measures=gateway.measures)
    return app


async def _told(_: Request, error: Exception) -> Response:
    return failure_from(error).response()


async def _invalid(_: Request, error: Exception) -> Response:
    """What is wrong with a body, in one line that repeats nothing of a prompt."""
    line = "body"
    problem = "cannot be read"
    if isinstance(error, RequestValidationError) and error.errors():
        first = error.errors()[0]
        names = [str(part) for part in first["loc"] if part != "body"]
        line = f"field {shown('.'.join(names))}" if names else line
        problem = str(first["msg"])
    return failure_from(InputError(line, problem, "see docs/gateway.md")).response()


async def _plain(_: Request, error: Exception) -> Response:
    # FastAPI puts whatever goes wrong while a body is read behind one of its own.
    if isinstance(error.__cause__, IntarsiaError):
        return failure_from(error.__cause__).response()
    if not isinstance(error, HTTPException):
        return failure_from(error).response()
    return Failure(
        status=error.status_code,
        kind="invalid_request_error",
        message=f"request: {error.detail}; see docs/gateway.md",
        headers=error.headers or {},
    ).response()
