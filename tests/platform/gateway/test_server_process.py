"""``intarsia serve`` as a process: the official client, revocation, an orderly end."""

import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow

LONG = {"model": "legal", "prompt": "the contract", "max_tokens": 2000, "temperature": 0}


def test_a_server_from_its_start_to_its_end(departments: Any, start_server: Any, tmp_path: Path):
    home = departments.copy(tmp_path / "home")
    served = start_server(home, "--requests-per-principal", "4", "--drain-seconds", "20")
    assert [model.id for model in served.openai("ana").models.list()] == ["auto", "base", "legal"]
    stream = served.openai("ana").completions.create(**LONG, stream=True)
    other = served.openai("dora").completions.create(**LONG, stream=True)
    next(stream), next(other)
    key_id = departments.keys["ana"].split("-")[1]
    revoked = home.intarsia("keys", "revoke", key_id)
    # Its running answer ends, and nobody else's does.
    with pytest.raises(openai.APIError, match="not valid any more") as caught:
        for _ in stream:
            pass
    assert caught.value.code == "revoked"
    assert next(other).choices[0].finish_reason is None
    other.close()
    out, err = revoked.communicate(timeout=60)
    assert revoked.returncode == 0, err
    with pytest.raises(openai.AuthenticationError):
        served.openai("ana").models.list()
    # What is being answered when the signal comes is answered to its end.
    last = iter(
        served.openai("dora").completions.create(**{**LONG, "max_tokens": 150}, stream=True)
    )
    next(last)
    served.process.send_signal(signal.SIGTERM)
    assert [chunk.choices[0].finish_reason for chunk in last][-1] == "length"
    out, err = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, err
    assert out.splitlines()[-1] == f"serving {served_base(home)} at {served.url}"
    assert err == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health/live")
    audit = home.intarsia("audit", "verify")
    out, err = audit.communicate(timeout=60)
    assert audit.returncode == 0, err


def served_base(home: Any) -> str:
    from intarsia_platform.groups.store import Groups
    from intarsia_platform.home import Home
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.store import ContentStore

    opened = Home.open(home.path)
    with open_database(opened.database_url) as database:
        groups = Groups(database, ContentStore(opened.store_url)).list()
    return groups[0].base


def test_a_port_that_is_taken_is_one_line(departments: Any):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process: subprocess.Popen[str] = departments.intarsia("serve", "--port", str(port))
        out, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"intarsia: error: address 127.0.0.1:{port}: Address already in use")
