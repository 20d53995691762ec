"""What only the Ray grid has to promise: processes that end, share, start and stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from intarsia_client.errors import FederationError, InputError
from intarsia_platform.federation.client_contexts import VirtualClients, decode_state
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.ray_broadcast import Broadcasts, ReceivedBroadcasts
from intarsia_platform.federation.ray_cluster import connect
from intarsia_platform.federation.ray_grid import ChunkSizes, RayGrid

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from grid_fixtures import local_ray, messages  # noqa: E402

APP = "grid_client_apps:app"
CLIENTS = VirtualClients(node_ids=range(1, 21), node_config=lambda node: {"target": float(node)})
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def one_ray():
    with local_ray(cpus=3):
        yield


@pytest.fixture(scope="module")
def grid(one_ray):
    environment = {"INTARSIA_TEST": "here"}
    with RayGrid(APP, CLIENTS, deadline_seconds=60.0, environment=environment) as made:
        yield made


def send(content, nodes, kind="train.vandal"):
    return [Message(content, node, kind) for node in nodes]


def processes_with(token):
    """Find the processes that inherited a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


@slow
def test_crashed_workers_are_replaced_and_their_messages_tried_again(grid, tmp_path):
    """Client 5 kills its process once, client 3 always, 7 fails to answer; nobody else notices."""
    sent = messages("train.crash", range(1, 11), number=1, marks=str(tmp_path))
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(sent)}
    assert sorted(replies) == list(range(1, 11))
    for node, cause in ((3, "ActorDiedError"), (7, ".*pickle.*lambda.*")):
        failed = replies.pop(node)
        assert failed.error.code == ErrorCode.CLIENT_APP_CRASHED
        reason = f"message 0-[0-9]+ to node {node}: its Ray worker ended 3 times .{cause}.; see"
        assert re.match(reason, failed.error.reason)
    assert {reply.content["metrics"]["node"] for reply in replies.values()} == set(replies)
    tries = {node: len((tmp_path / f"tries-{node}").read_text()) for node in range(1, 11)}
    assert (tries[3], tries[5], tries[7]) == (3, 2, 3)
    assert grid._states.load(3, 2) is None
    assert decode_state(grid._states.load(5, 2))["tries"]["done"] is True


@slow
def test_a_worker_killed_while_idle_goes_unnoticed(grid):
    (reply,) = grid.send_and_receive(messages("query", [1]))
    os.kill(int(reply.content["described"]["process"]), signal.SIGKILL)
    replies = list(grid.send_and_receive(messages("train.noop", range(1, 21))))
    assert [reply.content["metrics"]["node"] for reply in replies] == list(range(1, 21))


@slow
def test_what_messages_share_is_stored_once(grid):
    before = grid.stored_broadcasts
    small = ArrayRecord([np.zeros(100)])
    large = ArrayRecord([np.zeros(2**15)])
    replies = list(grid.send_and_receive(send(RecordDict({"arrays": large}), range(1, 21))))
    assert grid.stored_broadcasts == before + 1
    # A client that changes its record does so for itself alone, in whichever worker.
    assert all(reply.content["metrics"]["before"] == 1 for reply in replies)
    list(grid.send_and_receive(send(RecordDict({"arrays": small}), range(1, 21))))
    list(grid.send_and_receive(send(RecordDict({"arrays": large}), [1])))
    assert grid.stored_broadcasts == before + 1


@slow
def test_broadcasts_are_found_by_identity_and_freed_after_their_last_use(grid):
    shared = Array(np.arange(2**15))
    contents = [
        RecordDict(
            {
                "arrays": ArrayRecord({"shared": shared, "own": Array(np.full(3, node))}),
                "config": ConfigRecord({"node": node}),
            }
        )
        for node in range(3)
    ]
    texts = ConfigRecord({"text": "x" * 2**17})
    contents += [RecordDict({"texts": texts}), RecordDict({"texts": texts})]
    packed = (sender := Broadcasts()).pack(
        {str(key): Message(content, 1, "train") for key, content in enumerate(contents)}
    )
    assert sender.stored == 2
    assert all(content.size < 2000 for content in packed.values())
    receiver = ReceivedBroadcasts()
    for content, part in zip(contents, packed.values(), strict=True):
        assert receiver.unpack(part, sender.references(part.keys)) == content
    for part in packed.values():
        assert sender.references(part.keys)
        sender.release(part)
    with pytest.raises(KeyError):
        sender.references(packed["0"].keys)


@slow
def test_workers_have_the_environment_and_threads_they_were_given(grid):
    (reply,) = grid.send_and_receive(messages("query", [1]))
    described = reply.content["described"]
    assert described["extra"] == "here"
    assert described["threads"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert described["devices"] == ""


@slow
def test_results_do_not_depend_on_the_number_of_workers(grid, one_ray):
    content = RecordDict({"arrays": ArrayRecord([np.linspace(0, 1, 7)])})
    with RayGrid(APP, CLIENTS, workers=1, cpus_per_worker=0.5) as one:
        outcomes = [
            [
                reply.content["arrays"].to_numpy_ndarrays()[0].tobytes()
                for reply in each.send_and_receive(send(content, CLIENTS.node_ids, "train"))
            ]
            for each in (grid, one, InProcessGrid(APP, CLIENTS))
        ]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@slow
@pytest.mark.parametrize(
    ("options", "kind", "line"),
    [
        ({"gpus_per_worker": 1}, InputError, "gpus_per_worker: 1 for 2 workers makes 2; Ray has 0"),
        ({"gpus_per_worker": 0.5}, InputError, "gpus_per_worker: 0.5 for 2 workers makes 1; Ray"),
        ({"cpus_per_worker": 50}, InputError, "cpus_per_worker: 50 for 2 workers makes 100; Ray"),
        # Two of the three CPUs are taken by the module's own grid.
        ({"start_seconds": 2.0}, FederationError, "Ray workers: not started within 2 seconds"),
        ({"client_app": "no_such:app", "workers": 1}, InputError, "client app: no_such:app; make"),
    ],
)
def test_workers_that_cannot_start_are_one_clear_line_and_soon(grid, options, kind, line):
    started = time.monotonic()
    with pytest.raises(kind) as failure:
        RayGrid(options.pop("client_app", APP), CLIENTS, **options)
    assert str(failure.value).startswith(line)
    assert "\n" not in str(failure.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"workers": 0}, "workers: 0; give"),
        ({"cpus_per_worker": 0.0}, "cpus_per_worker: 0.0; give"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker: 1.5; give"),
        ({"gpus_per_worker": -1}, "gpus_per_worker: -1; give"),
        ({"address": "nonsense"}, "Ray's address: nonsense; write it as host:port"),
        ({"attempts": 0}, "attempts: 0; give"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_starts(options, line):
    with pytest.raises(InputError) as failure:
        RayGrid(APP, CLIENTS, **options)
    assert str(failure.value).startswith(line)


def test_a_cluster_that_is_not_there_is_one_line_and_soon(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(FederationError, match=r"Ray cluster: 127.*; start it, or unset"):
            connect(
                address=None,
                workers=1,
                cpus_per_worker=None,
                gpus_per_worker=0.0,
                object_store_bytes=2**27,
            )
        assert time.monotonic() - started < 12


def test_chunks_grow_with_quick_messages_and_not_with_long_ones():
    sizes = ChunkSizes(workers=2)
    assert sizes.size("train", 1000) == 1
    taken = []
    for _ in range(10):
        taken.append(sizes.size("train", 1000))
        sizes.measured("train", taken[-1], taken[-1] * 1e-4)
    assert taken[:5] == [1, 2, 4, 8, 16]
    assert sizes.size("train", 1000) == 250
    assert sizes.size("train", 40) == 10
    assert sizes.size("train", 1) == 1
    assert sizes.size("evaluate", 1000) == 1
    sizes.measured("train", 250, 30.0)
    assert sizes.size("train", 1000) == 1
    sizes.measured("train", 1, 1e-4)
    sizes.reset()
    assert sizes.size("train", 1000) == 1


DRIVER = """
import json, sys
from flwr.app import ConfigRecord, Message, RecordDict
from intarsia_platform.federation.client_contexts import VirtualClients
from intarsia_platform.federation.ray_grid import RayGrid

def messages(kind, **config):
    content = RecordDict({"config": ConfigRecord(config)})
    return [Message(content, node, kind) for node in (1, 2)]

clients = VirtualClients(node_ids=range(1, 3), node_config=lambda node: {})
with RayGrid("grid_client_apps:app", clients, **json.loads(sys.argv[1])) as grid:
    described = [dict(r.content["described"]) for r in grid.send_and_receive(messages("query"))]
    print(json.dumps(described), flush=True)
    if len(sys.argv) > 2:
        grid.send_and_receive(messages("train.sleep", seconds=60.0, marks=sys.argv[2]))
"""


def drive(options, *arguments, **environment):
    """Start a process that uses a grid; its working folder is the repository's root."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(options), *arguments],
        env=environment,
        cwd=HERE.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@slow
def test_nothing_is_left_running_when_the_driver_goes(tmp_path):
    """Three drivers with a Ray of their own, stopped in the middle of a round in three ways."""
    drivers = {}
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as short:
        try:
            for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                token, folder = f"intarsia-{uuid.uuid4()}", Path(short) / how.name
                folder.mkdir()
                started = drive({}, str(tmp_path), INTARSIA_TOKEN=token, TMPDIR=str(folder))
                drivers[how] = started, token, folder
            for driver, token, folder in drivers.values():
                described = json.loads(driver.stdout.readline())
                assert {one["system"] for one in described} == {"Linux"}
                assert len(processes_with(token)) > 3
                assert list(folder.iterdir())
            time.sleep(0.5)
            for how, (driver, _, _) in drivers.items():
                # Ctrl-C in a terminal reaches Ray's processes too, which are in the same group.
                (os.killpg if how is signal.SIGINT else os.kill)(driver.pid, how)
            for how, (driver, token, folder) in drivers.items():
                _, errors = driver.communicate(timeout=90)
                assert driver.returncode != 0
                assert ("KeyboardInterrupt" in errors) == (how is signal.SIGINT)
                assert wait_until(lambda token=token: not processes_with(token))
                assert how is signal.SIGKILL or not list(folder.iterdir())
            assert list(tmp_path.iterdir()) == []
        finally:
            for driver, token, _ in drivers.values():
                driver.kill()
                driver.communicate()
                for process in processes_with(token):
                    os.kill(process, signal.SIGKILL)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def is_open(port):
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@slow
def test_a_cluster_of_someone_else_is_used_and_left_alone():
    """A real head node, found through RAY_ADDRESS, whose one GPU two workers share."""
    token = f"intarsia-{uuid.uuid4()}"
    gcs, manager, objects, agent, metrics, runtime = free_ports(6)
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "INTARSIA_TOKEN": token, "PYTHONPATH": paths}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as short:
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--node-manager-port={manager}"),
            *(f"--object-manager-port={objects}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime}"),
            *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={short}"),
            *("--num-cpus=2", "--num-gpus=1", "--object-store-memory=134217728"),
        ]
        head = subprocess.Popen(command, env=environment, **quiet)
        try:
            assert wait_until(lambda: is_open(gcs))
            driver = drive({"gpus_per_worker": 0.5}, RAY_ADDRESS=f"127.0.0.1:{gcs}")
            output, errors = driver.communicate(timeout=60)
            assert driver.returncode == 0, errors
            described = json.loads(output)
            assert [one["devices"] for one in described] == ["0", "0"]
            assert len({one["process"] for one in described}) == 2
            assert [one["system"] for one in described] == ["Linux", "Linux"]
            assert head.poll() is None and is_open(gcs)
            assert wait_until(
                lambda: not any(Path("/proc", one["process"]).exists() for one in described)
            )
        finally:
            head.terminate()
            head.wait(timeout=20)
            wait_until(lambda: not processes_with(token), seconds=5.0)
            for process in processes_with(token):
                os.kill(process, signal.SIGKILL)
