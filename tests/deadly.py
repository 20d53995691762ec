"""Processes that SIGKILL themselves, each a forked child of one that has imported everything.

The kill comes from inside, so that every point is met exactly.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Callable[..., Any], calls: int = 1) -> Callable[..., Any]:
    """The function, followed by death when it was called so often."""
    made = 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal made
        result = function(*arguments, **options)
        made += 1
        if made == calls:
            die()
        return result

    return deadly


def answer_jobs(base: str, run: Callable[[dict[str, Any]], None], *modules: str) -> None:
    """Run each job of standard input, a line of JSON, in a child; answer with its exit code."""
    import torch
    from intarsia_client.base_model import load_base

    torch.set_num_threads(1)
    # Every child has them from here.
    load_base(base, task="causal-lm")
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                run(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


@contextmanager
def killed_by(script: Path, base: str) -> Iterator[Callable[..., None]]:
    """Start a script that answers jobs; yields what gives it one and sees that it was killed."""
    with subprocess.Popen(
        [sys.executable, str(script), base],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
             "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip

        def ask(**job: Any) -> None:
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            assert server.stdout.readline() == "-9\n"

        yield ask
        server.stdin.close()
