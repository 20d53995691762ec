"""The Flower app over Flower's own network: a SuperLink and two SuperNodes, as real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from flwr.app import Context, RecordDict
from intarsia_client.peft_files import read_adapter, read_encoded
from intarsia_platform.demo.run import BASE
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "deploy" / "flower_app"
BIN = Path(sys.executable).parent
SITES = ("north", "south")
SENTENCES = (
    "Return a copy of the sequence with the elements in reverse order.",
    "Raise an error if the file cannot be opened for reading.",
    "The keys of the mapping are sorted before they are written.",
)
START_SECONDS = 60.0
RUN_SECONDS = 400.0


def environment(home: Path) -> dict[str, str]:
    """One thread everywhere, so that sums come out in one order; nothing that calls home."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Deployment:
    """Processes of one test, which end with it together with all that they started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "flwr"
        self.environment = environment(self.home)
        self.daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.daemons.append((name, process))

    def flwr(self, *words: str, seconds: float) -> str:
        """Run the command line to its end and give what it wrote."""
        name = f"flwr-{len(self.daemons)}"
        self.start(name, "flwr", *words)
        process = self.daemons[-1][1]
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -1
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        assert code == 0, f"{words} ended with {code}:\n{text}\n{self.logs()}"
        return text

    def wait_until_healthy(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            assert self.daemons[0][1].poll() is None, self.logs()
            try:
                with opener.open(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def end(self) -> None:
        for _, process in reversed(self.daemons):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        # The SuperLink starts its helpers in a session of their own.
        deadline = time.monotonic() + 10
        while (left := self.left()) and time.monotonic() < deadline:
            for helper in left:
                with suppress(psutil.NoSuchProcess):
                    helper.kill()
            time.sleep(0.1)

    def left(self) -> list[psutil.Process]:
        """Processes of this deployment, whoever started them: those that know its FLWR_HOME."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get("FLWR_HOME") == str(self.home):
                    found.append(process)
        return found


@contextmanager
def deployed(folder: Path, nodes: Mapping[str, Mapping[str, str]]) -> Iterator[Deployment]:
    """A SuperLink and its SuperNodes on loopback."""
    port, *others = free_ports(1 + len(nodes))
    deployment = Deployment(folder)
    deployment.home.mkdir()
    (deployment.home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    try:
        deployment.start(
            "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1",
            "--port", str(port), "--database", str(folder / "state.db"),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        deployment.wait_until_healthy(port)
        for own_port, (name, config) in zip(others, nodes.items(), strict=True):
            written = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
            deployment.start(
                name, "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
                "--host", "127.0.0.1", "--port", str(own_port), "--node-config", written,
            )  # fmt: skip
        yield deployment
    finally:
        deployment.end()


def site_configs(folder: Path) -> dict[str, dict[str, str]]:
    configs = {}
    for place, name in enumerate(SITES):
        for part, count in (("train", 6), ("test", 2)):
            rows = [
                {"text": f"{SENTENCES[(n + place) % 3]} Site {place}, note {n}, {part}."}
                for n in range(count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{part}.jsonl").write_text(text)
        configs[name] = {
            "client": name,
            "data": str(folder / f"{name}-train.jsonl"),
            "test-data": str(folder / f"{name}-test.jsonl"),
        }
    return configs


def run_config(output: Path) -> dict[str, Any]:
    settings = tomllib.loads((APP / "pyproject.toml").read_text())
    given = {
        "base": str(BASE), "output": str(output), "rounds": 2, "ranks": "2,4", "batch-size": 2,
        "target-modules": "q_proj,v_proj", "learning-rate": 1e-2, "max-length": 24,
        "node-deadline-seconds": 300, "deadline-seconds": 300,
        # Kept at the nodes and at the coordinator between rounds, and rounded on both ways.
        "keep-optimizer": True, "broadcast-rank": 3, "upload": "int8", "download": "int8",
    }  # fmt: skip
    config = settings["tool"]["flwr"]["app"]["config"]
    assert given.keys() <= config.keys()
    return {**config, **given}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_superlink_and_two_supernodes_give_the_in_process_grids_bytes(
    tmp_path: Path, server_app: ModuleType
) -> None:
    configs = site_configs(tmp_path)
    config = run_config(tmp_path / "adapter")
    overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    with deployed(tmp_path, configs) as deployment:
        deployment.flwr("run", str(APP), "test", "--stream", "-c", overrides, seconds=RUN_SECONDS)
        listed = deployment.flwr("ls", "test", "--format", "json", seconds=START_SECONDS)
        logs = deployment.logs()
    assert deployment.left() == []
    assert '"finished:completed"' in listed, f"{listed}\n{logs}"
    assert (tmp_path / "adapter").is_dir(), logs

    adapter = read_adapter(tmp_path / "adapter")
    assert any((factors.b != 0).any() for factors in adapter.modules.values())
    manifest = json.loads((tmp_path / "adapter" / "intarsia.json").read_text())
    assert sorted(manifest["nodes"].values()) == sorted(SITES)
    assert manifest["rounds"] == {n: {"accepted": 2, "refused": 0} for n in ("1", "2")}

    clients = [
        VirtualClient(node_id=int(node), node_config=configs[name])
        for node, name in manifest["nodes"].items()
    ]
    own = {**config, "output": str(tmp_path / "in-process")}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=own)
    # As many threads as there, and the client app that the Flower app names.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with InProcessGrid("intarsia_client.app:app", clients) as grid:
            server_app.app(grid, context)
    finally:
        torch.set_num_threads(before)
    there, here = read_encoded(tmp_path / "adapter"), read_encoded(tmp_path / "in-process")
    assert there.digest == here.digest == manifest["digest"]
    assert there.tensors == here.tensors
