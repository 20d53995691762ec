"""Time and memory of the demo, as a person runs it: the command, its Ray workers and all.

    python tests/benchmarks/demo.py [--home DIR] [-- OPTIONS OF intarsia demo]

Prints one JSON object: wall seconds, CPU seconds of the whole process tree, and the largest sum of
proportional set sizes (shared pages counted once) seen while it ran, beside the limits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MARK = "INTARSIA_BENCHMARK"
LIMITS = {"wall_seconds": 180.0, "peak_mebibytes": 3072.0}


def tree_memory(mark: str) -> int:
    """Bytes that the processes of a run hold together, shared pages counted once.

    Args:
        mark: What the run's processes inherited in their environment.

    Returns:
        The sum of their proportional set sizes.
    """
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                total += process.memory_full_info().pss
    return total


def run_demo(home: Path, options: list[str]) -> dict[str, object]:
    """Run the demo once and watch its memory.

    Args:
        home: Where it leaves everything.
        options: More options of ``intarsia demo``.

    Returns:
        What was measured and the demo's own result.

    Raises:
        SystemExit: If the demo failed; its output is shown.
    """
    result = home / "result.json"
    mark = str(home)
    begun = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [
                Path(sys.executable).parent / "intarsia",
                "demo",
                "--home",
                home,
                "--json",
                result,
                *options,
            ],
            env={**os.environ, MARK: mark},
            stdout=output,
            stderr=output,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(mark))
            time.sleep(0.5)
        wall = time.monotonic() - begun
        if process.returncode != 0:
            output.seek(0)
            raise SystemExit(output.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(result.read_text())
    return {
        "wall_seconds": round(wall, 1),
        "driver_cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "peak_mebibytes": round(peak / 2**20, 1),
        "rounds": len(told["rounds"]),
        "base_perplexity": told["base"]["perplexity"],
        "federated_perplexity": told["rounds"][-1]["test"]["perplexity"],
        "clients": told["clients"],
        "digest": told["adapter"]["digest"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = arguments.home or Path(folder) / "home"
        home.mkdir(parents=True, exist_ok=True)
        measured = run_demo(home, arguments.options)
    measured["limits"] = LIMITS
    measured["cores"] = os.cpu_count()
    json.dump(measured, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
