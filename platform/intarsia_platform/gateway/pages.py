"""The console's files, and what they ask the gateway for beside OpenAI's interface."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from intarsia_client.files import bytes_digest
from starlette.responses import JSONResponse, RedirectResponse, Response

from intarsia_platform.gateway.core import Asker, Gateway, asker_of
from intarsia_platform.gateway.stewardship import Stewardship

FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "console.css": ("console.css", "text/css; charset=utf-8"),
    "gateway.js": ("gateway.js", "text/javascript; charset=utf-8"),
    "asking.js": ("asking.js", "text/javascript; charset=utf-8"),
    "access.js": ("access.js", "text/javascript; charset=utf-8"),
    "console.js": ("console.js", "text/javascript; charset=utf-8"),
}
"""From the end of a path below ``/console/`` to a file and its type."""

CONTENT_SECURITY_POLICY = "; ".join([
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
    "img-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
])  # fmt: skip
"""What the page may do: nothing inline, nothing from elsewhere, and nobody may frame it."""


def page_routes() -> APIRouter:
    """The console itself; the same for everybody, since it holds nothing.

    Returns:
        The routes.
    """
    router = APIRouter()
    folder = files("intarsia_platform.gateway") / "console"

    @router.get("/")
    async def root() -> Response:
        return RedirectResponse("/console/")

    for end, (name, kind) in FILES.items():
        page = partial(_page, (folder / name).read_bytes(), kind)
        router.add_api_route(f"/console/{end}", page, methods=["GET"])
    return router


def steward_routes(gateway: Gateway, stewardship: Stewardship) -> APIRouter:
    """What the console asks for, below ``/intarsia``; for known callers.

    Args:
        gateway: What answers.
        stewardship: Shows stewards who may use what.

    Returns:
        The routes.
    """
    router = APIRouter(prefix="/intarsia")

    @router.get("/caller")
    async def caller(request: Request) -> Response:
        found = await gateway.run(partial(_caller, gateway, stewardship, asker_of(request)))
        return JSONResponse(found)

    @router.get("/access")
    async def access(
        request: Request, purpose: str = "", users_from: int = 0, adapters_from: int = 0
    ) -> Response:
        look = partial(
            stewardship.access,
            asker_of(request).principal,
            purpose=purpose,
            users_from=users_from,
            adapters_from=adapters_from,
        )
        return JSONResponse(await gateway.run(look))

    return router


async def _page(data: bytes, kind: str) -> Response:
    headers = {
        "content-type": kind,
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "cache-control": "no-cache",
        "etag": f'"{bytes_digest(data)}"',
    }
    return Response(data, headers=headers)


def _caller(gateway: Gateway, stewardship: Stewardship, asker: Asker) -> dict[str, Any]:
    ticket = gateway.authorize(asker)
    settings = gateway.settings
    template = getattr(gateway.service.base.tokenizer, "chat_template", None)
    return {
        "principal": ticket.principal,
        "purpose": ticket.purpose,
        "steward": stewardship.is_steward(ticket.principal),
        "conversations": bool(template),
        "max_tokens": settings.max_tokens,
        "default_tokens": min(settings.default_tokens, settings.max_tokens),
    }
