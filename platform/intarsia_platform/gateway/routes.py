"""The routes of OpenAI's interface, the health checks and the figures."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray
from starlette.responses import JSONResponse, Response

from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.refusal import refused, shown
from intarsia_platform.answering.answers import ModelEntry, labels_of, used_of
from intarsia_platform.answering.service import AnsweringService
from intarsia_platform.answering.use import UseKind, parse_use
from intarsia_platform.gateway.asking import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    chat_asked,
    check_fields,
    completion_asked,
)
from intarsia_platform.gateway.core import Asker, Gateway, asker_of
from intarsia_platform.gateway.failures import NotReady
from intarsia_platform.gateway.responding import AnswerResponse
from intarsia_platform.gateway.shapes import model_shape
from intarsia_platform.registry.epoch import read_epoch

EMBEDDED_TEXTS = 64
_READY_SECONDS = 5


def openai_routes(gateway: Gateway) -> APIRouter:
    """The routes below ``/v1``.

    Args:
        gateway: What answers.

    Returns:
        The routes.
    """
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        asked = completion_asked(body, gateway.settings)
        return AnswerResponse(gateway, asker_of(request), asked)

    @router.post("/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        asked = chat_asked(body, gateway.settings)
        return AnswerResponse(gateway, asker_of(request), asked)

    @router.get("/models")
    async def models(request: Request) -> Response:
        entries = await gateway.run(partial(_models, gateway, asker_of(request)))
        data = [model_shape(entry, gateway.settings.telling) for entry in entries]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        entry = await gateway.run(partial(_model, gateway, asker_of(request), model))
        return JSONResponse(model_shape(entry, gateway.settings.telling))

    @router.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        asker = asker_of(request)
        with gateway.room.hold(asker.principal):
            # It cannot be stopped on its way, but whoever waits for it can go.
            return JSONResponse(await gateway.run(partial(_embeddings, gateway, asker, body)))

    return router


def plain_routes(gateway: Gateway) -> APIRouter:
    """The health checks and, where they are wanted, the figures; for anybody.

    Args:
        gateway: What answers.

    Returns:
        The routes.
    """
    router = APIRouter()

    @router.get("/health/live")
    async def live() -> Response:
        if not gateway.service.alive:
            raise NotReady("engine", "its thread has ended", "start the server again")
        return JSONResponse({"status": "live"})

    @router.get("/health/ready")
    async def ready() -> Response:
        if trouble := gateway.keeper.trouble:
            raise NotReady("server", trouble, "start it again if it stays so")
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await gateway.run(partial(_look, gateway.service))
        except TimeoutError:
            raise NotReady("database", "does not answer", "see what holds it") from None
        return JSONResponse({"status": "ready"})

    if gateway.settings.metrics:

        @router.get("/metrics")
        async def metrics() -> Response:
            page, kind = gateway.measures.page()
            return Response(page, headers={"content-type": kind})

    return router


def _models(gateway: Gateway, asker: Asker) -> tuple[ModelEntry, ...]:
    return gateway.service.models(gateway.authorize(asker))


def _model(gateway: Gateway, asker: Asker, model: str) -> ModelEntry:
    """One entry: of the list, or a mixture of what is in it."""
    ticket = gateway.authorize(asker)
    try:
        use = parse_use(model)
    except InputError:
        raise refused("adapter", model) from None
    if use.kind is not UseKind.NAMED:
        return ModelEntry(id=str(use.kind))
    choices = gateway.service.choose(ticket, "", use)
    return ModelEntry(id=model, labels=labels_of(used_of(ticket, choices)))


def _embeddings(gateway: Gateway, asker: Asker, body: EmbeddingRequest) -> dict[str, Any]:
    check_fields(body)
    service, texts = gateway.service, body.input
    texts = [texts] if isinstance(texts, str) else texts
    if body.model != UseKind.BASE:
        # Nothing is looked up, so that this tells nothing of what is there.
        raise InputError(f"model {shown(body.model)}", "gives no embeddings", "use base")
    if not 0 < len(texts) <= EMBEDDED_TEXTS:
        raise InputError("input", f"{len(texts)} texts", f"send 1 to {EMBEDDED_TEXTS}")
    encoding = body.encoding_format or "float"
    if encoding not in ("float", "base64"):
        raise InputError("encoding_format", shown(encoding), "use float or base64")
    ticket = gateway.authorize(asker)
    # A longer text is refused, not cut.
    most = service.embedded_tokens
    counts = [service.count_tokens(text) for text in texts]
    for count in counts:
        if count > most:
            raise InputError("input", f"a text of {count} tokens", f"use at most {most}")
    vectors = service.embed(texts)
    event = {
        "action": "embed",
        "principal": ticket.principal,
        "credential": ticket.credential,
        "purpose": ticket.purpose,
        "decision": "allow",
        "number": len(texts),
        "tokens": sum(counts),
    }
    AuditLog(service.database).append(event)
    gateway.measures.tokens.labels("prompt").inc(sum(counts))
    data = [
        {"object": "embedding", "index": place, "embedding": _vector(vector, encoding)}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _vector(vector: FloatArray, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]


def _look(service: AnsweringService) -> None:
    with service.database.read() as connection:
        read_epoch(connection)
