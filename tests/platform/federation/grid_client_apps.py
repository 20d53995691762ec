"""Client apps for the tests of both grids; Ray workers import this file by name."""

import os
import platform
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from intarsia_client.errors import InputError

app = ClientApp()


def metrics(message: Message, **values: float) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(values)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One step towards the client's own target, half the way; weighted by its node id."""
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    target = np.full_like(weights, float(context.node_config["target"]))
    seen = int(context.state["seen"]["rounds"]) if "seen" in context.state else 0
    context.state["seen"] = ConfigRecord({"rounds": seen + 1})
    content = RecordDict(
        {
            "arrays": ArrayRecord([weights + (target - weights) / 2]),
            "metrics": MetricRecord({"num-examples": context.node_id, "seen": seen}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    seen = int(context.state["seen"]["rounds"]) if "seen" in context.state else 0
    context.state["seen"] = ConfigRecord({"rounds": 1000})
    return metrics(message, **{"num-examples": 1, "seen": seen})


@app.train("noop")
def train_noop(message: Message, context: Context) -> Message:
    return metrics(message, node=context.node_id)


@app.train("fail")
def train_fail(message: Message, context: Context) -> Message:
    context.state["half"] = ConfigRecord({"done": True})
    if context.node_id % 2:
        raise InputError("data file", "x.jsonl", "give one with records")
    raise ValueError("two\nlines")


@app.train("leave")
def train_leave(message: Message, context: Context) -> Message:
    raise SystemExit(3)


@app.train("interrupt")
def train_interrupt(message: Message, context: Context) -> Message:
    raise KeyboardInterrupt


@app.train("nothing")
def train_nothing(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


@app.train("sleep")
def train_sleep(message: Message, context: Context) -> Message:
    """Sleeps where told to; leaves a mark when it is done."""
    time.sleep(float(message.content["config"]["seconds"]))
    mark = Path(str(message.content["config"]["marks"])) / f"done-{context.node_id}"
    mark.touch()
    return metrics(message, node=context.node_id)


@app.train("crash")
def train_crash(message: Message, context: Context) -> Message:
    """Kills its own process: client 3 always, 5 the first time; 7 gives what cannot be sent."""
    marks = Path(str(message.content["config"]["marks"]))
    with (marks / f"tries-{context.node_id}").open("a") as tries:
        tries.write("x")
    first = (marks / f"tries-{context.node_id}").read_text() == "x"
    if context.node_id == 3 or (context.node_id == 5 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    context.state["tries"] = ConfigRecord({"done": True})
    reply = metrics(message, node=context.node_id)
    if context.node_id == 7:
        reply.__dict__["extra"] = lambda: None
    return reply


@app.train("vandal")
def train_vandal(message: Message, context: Context) -> Message:
    """Changes what it was sent, which only it may see."""
    before = len(message.content["arrays"])
    message.content["arrays"]["more"] = Array(np.zeros(1))
    message.content["config"] = ConfigRecord({"mine": True})
    return metrics(message, before=before, process=os.getpid(), records=len(message.content))


@app.query()
def query(message: Message, context: Context) -> Message:
    """Describe the process that the client runs in."""
    described = {
        "system": platform.system(),
        "name": str(context.node_config.get("name", "")),
        "rounds": str(context.run_config.get("rounds", "")),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "extra": os.environ.get("INTARSIA_TEST", ""),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"),
        "process": str(os.getpid()),
    }
    return Message(RecordDict({"described": ConfigRecord(described)}), reply_to=message)


def make_app() -> ClientApp:
    return app


def make_nothing() -> int:
    return 3
