"""``intarsia serve``: what is refused before anything is loaded. The server itself is tested in
tests/platform/gateway."""

import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--port", "70000"], "--port: 70000"),
        (["--host", "no such host"], "--host: no such host"),
        (["--tell", "everything"], "--tell: everything; choose one of all, labels, nothing"),
        (["--drain-seconds", "-1"], "--drain-seconds: -1"),
        (["--max-tokens", "0"], "max_tokens: 0"),
        (["--requests-per-principal", "0"], "requests_per_principal: 0"),
        (["--request-seconds", "0"], "request_seconds: 0"),
        (["--replicas", "0"], "--replicas: 0"),
        (["--gpus-per-replica", "0.5"], "--gpus-per-replica: 0.5; use it with --replicas"),
        (["--tls-key", "key.pem"], "TLS: one file of two"),
        (["--tls-key", "a.pem", "--tls-certificate", "b.pem"], "--tls-certificate: b.pem"),
        (["--oidc-issuer", "https://issuer.example"], "--oidc-keys: is missing"),
        (["--oidc-keys", "k.json", "--oidc-issuer", "x"], "--oidc-audience: is missing"),
        (["--oidc-keys", "http://a.example/k", "--oidc-issuer", "x", "--oidc-audience", "y"],
         "key set: http://a.example/k"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line_before_anything_is_loaded(intarsia, tmp_path, words, start):
    (tmp_path / "home").mkdir()
    ended = intarsia("serve", "--home", tmp_path / "home", *words)
    assert ended.code == 2
    assert ended.line.startswith(f"intarsia: error: {start}")
    assert ended.out == ""


def test_a_home_that_is_missing_is_not_made(intarsia, tmp_path):
    ended = intarsia("serve", "--home", tmp_path / "none", "--port", "0")
    assert ended.code == 2
    assert ended.line.startswith("intarsia: error: home: ")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("more", [(), ("--replicas", "2")])
def test_a_home_without_groups_asks_for_a_base(intarsia, tmp_path, more):
    (tmp_path / "home").mkdir()
    ended = intarsia("serve", "--home", tmp_path / "home", "--port", "0", *more)
    assert ended.code == 2
    assert "--base" in ended.line


def test_an_address_that_is_taken_is_a_storage_error(intarsia, tmp_path):
    (tmp_path / "home").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = intarsia("serve", "--home", tmp_path / "home", "--port", port)
    assert ended.code == 4
    assert ended.line.startswith(f"intarsia: error: address 127.0.0.1:{port}: ")


def test_the_help_loads_no_library(start, tmp_path):
    process = start("serve", "--help", folder=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "--requests-per-principal" in out
    program = (
        "import sys; from intarsia_platform.cli import serve;"
        "print([name for name in ('torch', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
