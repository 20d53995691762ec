"""A real process that serves until a real signal comes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVING = """
import contextlib, signal, sys
from intarsia_platform.serving_cluster.signals import until_signalled

def say(what):
    print(what, flush=True)

@contextlib.contextmanager
def serving():
    try:
        say("starting")
        if sys.argv[1] == "slow":
            sys.stdin.read()
        yield "a place"
        say("draining")
    finally:
        say("ended")

numbers = signal.SIGINT, signal.SIGTERM
before = [signal.getsignal(number) for number in numbers]
try:
    until_signalled(serving(), say)
except KeyboardInterrupt:
    say("interrupted")
say("as before" if [signal.getsignal(number) for number in numbers] == before else "not restored")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("how", "before", "after"),
    [
        ("ready", ["starting", "a place"], ["draining", "ended", "as before"]),
        ("slow", ["starting"], ["ended", "interrupted", "as before"]),
    ],
)
def test_a_signal_ends_it_in_order(
    tmp_path: Path, number: int, how: str, before: list, after: list
):
    script = tmp_path / "serving.py"
    script.write_text(SERVING)
    with subprocess.Popen(
        [sys.executable, str(script), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert [process.stdout.readline().strip() for _ in before] == before
        process.send_signal(number)
        assert process.stdout.read().split("\n")[:-1] == after
    assert process.returncode == 0
