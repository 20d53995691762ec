"""Speed and memory of the in-process grid and the Ray grid with clients that do nothing.

``python tests/benchmarks/grids.py [--clients 1000] [--workers 2] [--rounds 7]`` prints one JSON
object:

* ``speed``: messages a second at ``--clients`` clients, the median of ``--rounds`` rounds after one
  to warm up, for both grids and for a plain Ray ``ActorPool`` with as many actors and as many
  calls that do nothing, measured in turn with the Ray grid on the same Ray. CPU seconds are of the
  rounds, the process and everything under it;
* ``memory``: what a simulation of 10 and of ``--clients`` clients takes, each in a process of its
  own, with 4 KiB of state a client in SQLite that changes in every round. ``peak_pss`` is the
  proportional set size of the driver and the Ray workers at its highest, ``driver_peak_rss`` the
  driver's alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from intarsia_platform.federation.client_contexts import VirtualClients
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.local_grid import LocalGrid

STATE_BYTES = 4096
FEW_CLIENTS = 10


def noop_app() -> ClientApp:
    """Make a client app that only answers, and one action that also keeps a state."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.train("remembering")
    def train_remembering(message, context):
        number = int(message.content["config"]["server-round"])
        state = np.full(STATE_BYTES // 8, number, dtype=np.int64)
        context.state["state"] = ArrayRecord([state])
        return train(message, context)

    return app


def virtual_clients(count: int) -> VirtualClients:
    return VirtualClients(node_ids=range(count), node_config=lambda node: {"partition": node})


def run_round(grid: LocalGrid, number: int, kind: str) -> None:
    """Send every client one message, as a strategy does, and take the replies."""
    content = RecordDict({"config": ConfigRecord({"server-round": number})})
    nodes = list(grid.get_node_ids())
    messages = [Message(content, node, kind, group_id=str(number)) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=300.0))
    failed = [reply.error.reason for reply in replies if reply.has_error()]
    if failed or len(replies) != len(nodes):
        raise RuntimeError(f"{len(replies)} replies to {len(nodes)} messages, {failed[:1]}")


def cpu_seconds() -> float:
    """CPU time of this process and of those under it that still run."""
    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


class Stopwatch:
    """Collects how long each of several equal things took."""

    def __init__(self, count: int) -> None:
        self.count, self.seconds, self.cpu = count, [], 0.0

    def run(self, thing: Callable[[], None]) -> None:
        cpu, started = cpu_seconds(), time.perf_counter()
        thing()
        self.seconds.append(time.perf_counter() - started)
        self.cpu += cpu_seconds() - cpu

    def report(self) -> dict[str, object]:
        rates = [self.count / seconds for seconds in self.seconds]
        return {
            "messages_per_second": round(statistics.median(rates)),
            "slowest_round": round(min(rates)),
            "fastest_round": round(max(rates)),
            "cpu_seconds_per_1000": round(1000 * self.cpu / self.count / len(rates), 3),
        }


def speed_in_process(clients: int, rounds: int) -> dict[str, object]:
    started = time.perf_counter()
    watch = Stopwatch(clients)
    with InProcessGrid(noop_app, virtual_clients(clients)) as grid:
        start_seconds = time.perf_counter() - started
        run_round(grid, 1, "train")
        for number in range(2, rounds + 2):
            watch.run(lambda number=number: run_round(grid, number, "train"))
    return {**watch.report(), "start_seconds": round(start_seconds, 2)}


def speed_on_ray(clients: int, rounds: int, workers: int) -> dict[str, object]:
    import ray
    from intarsia_platform.federation.ray_grid import RayGrid
    from ray.util import ActorPool

    class Plain:
        def noop(self, value):
            return value

    cpu, started = cpu_seconds(), time.perf_counter()
    grid_watch, pool_watch = Stopwatch(clients), Stopwatch(clients)
    with RayGrid(noop_app, virtual_clients(clients), workers=workers) as grid:
        start_seconds, start_cpu = time.perf_counter() - started, cpu_seconds() - cpu
        plain = ray.remote(Plain).options(num_cpus=0)
        pool = ActorPool([plain.remote() for _ in range(workers)])

        def run_pool() -> None:
            calls = pool.map_unordered(
                lambda actor, value: actor.noop.remote(value), range(clients)
            )
            if len(list(calls)) != clients:
                raise RuntimeError("the pool lost calls")

        run_round(grid, 1, "train")
        run_pool()
        for number in range(2, rounds + 2):
            grid_watch.run(lambda number=number: run_round(grid, number, "train"))
            pool_watch.run(run_pool)
        stopping = time.perf_counter()
    grid_report, pool_report = grid_watch.report(), pool_watch.report()
    ratio = float(grid_report["messages_per_second"]) / float(pool_report["messages_per_second"])
    return {
        "ray": {
            **grid_report,
            "start_seconds": round(start_seconds, 2),
            "start_cpu_seconds": round(start_cpu, 2),
            "stop_seconds": round(time.perf_counter() - stopping, 2),
        },
        "actor_pool": pool_report,
        "ray_to_actor_pool": round(ratio, 2),
    }


def proportional_bytes(process: int) -> int:
    """A process's memory, with what it shares counted in part; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def is_worker(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::Client")
    except psutil.NoSuchProcess:
        return False


@contextmanager
def peak_memory(peaks: dict[str, int]) -> Iterator[None]:
    """Sample the memory of this process and its Ray workers until the block ends."""
    me, ended = psutil.Process(), threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            workers = [process.pid for process in me.children(recursive=True) if is_worker(process)]
            total = sum(proportional_bytes(process) for process in [os.getpid(), *workers])
            peaks["workers"] = max(peaks.get("workers", 0), len(workers))
            peaks["peak_pss"] = max(peaks.get("peak_pss", 0), total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def memory_here(grid_name: str, clients: int, rounds: int, workers: int) -> dict[str, object]:
    """Simulate with states in SQLite, in this process, and say what it took."""
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.journal import ClientStates, create_run

    peaks: dict[str, int] = {}
    watch = Stopwatch(clients)
    with tempfile.TemporaryDirectory() as folder, peak_memory(peaks):
        database = open_database(f"sqlite:///{folder}/states.db")
        run = create_run(
            database,
            name="memory",
            config={},
            seed=0,
            rounds=rounds,
            base_digest="sha256:" + "0" * 64,
        )
        states = ClientStates(database, run.run_id)
        if grid_name == "ray":
            from intarsia_platform.federation.ray_grid import RayGrid

            grid = RayGrid(noop_app, virtual_clients(clients), workers=workers, states=states)
        else:
            grid = InProcessGrid(noop_app, virtual_clients(clients), states=states)
        with grid:
            for number in range(1, rounds + 1):
                watch.run(lambda number=number: run_round(grid, number, "train.remembering"))
            # Long enough for the sampler to see what the last round left.
            time.sleep(0.3)
        kept = states.load(clients - 1, rounds + 1)
    if kept is None or len(kept) < STATE_BYTES:
        raise RuntimeError("the states were not kept")
    # Not getrusage's maximum, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    rss = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    rate = watch.report()["messages_per_second"]
    return {**peaks, "driver_peak_rss": rss, "messages_per_second": rate}


def memory(grid_name: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Compare few clients with many, each simulated in a fresh process."""
    found: dict[str, dict[str, float]] = {}
    for clients in (FEW_CLIENTS, arguments.clients):
        command = [sys.executable, __file__, "--memory-of", grid_name, "--clients", str(clients)]
        command += ["--workers", str(arguments.workers), "--rounds", str(arguments.rounds)]
        finished = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, timeout=600
        )
        found[str(clients)] = json.loads(finished.stdout)
    few, many = found.values()
    ratios = {
        f"{key}_ratio": round(many[key] / few[key], 3) for key in ("peak_pss", "driver_peak_rss")
    }
    return {"clients": found, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", choices=["in_process", "ray"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    clients, rounds, workers = arguments.clients, arguments.rounds, arguments.workers
    if arguments.memory_of:
        print(json.dumps(memory_here(arguments.memory_of, clients, rounds, workers)))
        return
    load = os.getloadavg()[0]
    report = {
        "clients": clients,
        "workers": workers,
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "speed": {
            "in_process": speed_in_process(clients, rounds),
            **speed_on_ray(clients, rounds, workers),
        },
        "memory": {name: memory(name, arguments) for name in ("in_process", "ray")},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
