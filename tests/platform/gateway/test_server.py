"""Addresses, TLS and the end of a server, with an application that is next to nothing."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import write_certificate
from fastapi import FastAPI
from intarsia_client.errors import InputError, StorageError
from intarsia_platform.gateway.server import GatewayServer, bind, url_of


def application(seconds: float = 0) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def root() -> str:
        await asyncio.sleep(seconds)
        return "here"

    return app


@contextmanager
def running(app: FastAPI, **options: Any) -> Iterator[tuple[str, GatewayServer]]:
    ready = threading.Event()
    with bind("127.0.0.1", 0) as taken:
        server = GatewayServer(app, ready=ready.set, **{"drain_seconds": 5, **options})
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            assert ready.wait(30)
            yield url_of(taken, tls="key" in options), server
        finally:
            server.should_exit = True
            thread.join()


def test_an_address_is_taken_at_once_and_only_once():
    with bind("127.0.0.1", 0) as taken:
        host, port = taken.getsockname()
        assert url_of(taken, tls=False) == f"http://{host}:{port}"
        taken.listen()
        with pytest.raises(StorageError, match="in use"):
            bind("127.0.0.1", port)


def test_an_address_of_the_sixth_version_is_bracketed():
    try:
        taken = bind("::1", 0)
    except (InputError, StorageError):
        pytest.skip("this machine has no such address")
    with taken:
        assert url_of(taken, tls=True).startswith("https://[::1]:")


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", -1), ("no such host", 0)])
def test_what_is_no_address_is_refused(host: str, port: int):
    with pytest.raises(InputError):
        bind(host, port)


def test_what_is_being_answered_is_answered_when_it_is_to_end():
    answers: list[str] = []
    with running(application(0.5)) as (url, server):
        asking = threading.Thread(target=lambda: answers.append(httpx.get(url).json()))
        asking.start()
        while not server.server_state.tasks:
            asking.join(0.01)
    asking.join()
    assert answers == ["here"]


def test_it_speaks_tls(tmp_path: Path):
    chain, private = write_certificate(tmp_path)
    with running(application(), certificate=chain, key=private) as (url, _):
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(chain))
        assert httpx.get(url, verify=trusting).json() == "here"
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
