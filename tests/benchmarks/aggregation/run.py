"""Aggregation of Llama-7B-shaped adapters: ours beside the ways of the field, on the same files.

    python tests/benchmarks/aggregation/run.py [--folder DIR] [--kind shared] [--repeats 3]

Writes adapters of 32 x (q, k, v, o) modules of 4096 x 4096 with FLoRA's ranks (0.67 GB for 10, 3.4
GB for 50; the 200 are hard links to the 50), runs each contender in a process of its own, the quick
ones in turns, and prints one JSON object with the figures, their ratios and whether each target is
reached. The files are deleted at the end unless ``--folder`` names where to keep them. With
``--results`` each measurement is kept as soon as it is there, and what is kept is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RANK = 64
QUICK = ("ours", "read", "read_and_write", "gram", "general_gram")
SLOW = ("orthogonal", "concatenation")
# These also with one thread, for the processor time: two threads may share a core.
ALONE = ("ours", "gram")
SHOWN = ("cpu_seconds", "wall_seconds", "megabytes_beyond", "megabytes_peak")
Result = dict[str, Any]


def run_script(name: str, *words: object, threads: int | None = None) -> Result:
    """Run a script beside this one in a process of its own; the last line that it prints."""
    ended = subprocess.run(
        [sys.executable, HERE / name, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})},
    )
    if ended.returncode:
        raise SystemExit(f"{name} {words[0]} ended with {ended.returncode}")
    found: Result = json.loads(ended.stdout.splitlines()[-1])
    return found


def contend(
    name: str,
    folders: Sequence[Path],
    out: Path,
    *,
    cold: bool = False,
    threads: int | None = None,
) -> Result:
    """Run one contender in a process of its own.

    Args:
        name: The contender.
        folders: The adapters.
        out: Where its result goes.
        cold: Whether to read the adapters from the disk and not its cache.
        threads: How many threads it may use, None for as many as the machine has.

    Returns:
        What it printed.
    """
    words = ["--rank", RANK, "--out", out, *(["--cold"] if cold else [])]
    return run_script("contenders.py", name, *words, *folders, threads=threads)


class Measurements:
    """Runs contenders, says each one's figures on standard error, and keeps them in a file.

    Args:
        path: The file; what is in it is not measured again. None keeps nothing.
        scratch: Where results are written and deleted.
    """

    def __init__(self, path: Path | None, scratch: Path) -> None:
        self._path = path
        self._scratch = scratch
        self._held: dict[str, Result] = {}
        if path is not None and path.exists():
            self._held = json.loads(path.read_text())

    def of(
        self, name: str, folders: Sequence[Path], turn: int = 0, *, check: bool = False, **how: Any
    ) -> Result:
        """One contender's figures.

        Args:
            name: The contender.
            folders: The adapters.
            turn: Which of several measurements it is.
            check: Whether to compare the result with the best one.
            how: See :func:`contend`.

        Returns:
            What it printed.
        """
        words = [f"{key}={value}" for key, value in how.items()]
        key = " ".join([str(len(folders)), name, *words, str(turn)])
        if key not in self._held:
            out = self._scratch / "out"
            try:
                found = contend(name, folders, out, **how)
                if check:
                    found["accuracy"] = run_script("accuracy.py", RANK, out, *folders)
            finally:
                shutil.rmtree(out, ignore_errors=True)
            self._held[key] = found
            figures = {name: round(found[name], 3) for name in SHOWN}
            print(f"{key}: {figures}", file=sys.stderr, flush=True)
            if self._path is not None:
                self._path.write_text(json.dumps(self._held, indent=2))
        return self._held[key]


def median_of(results: Sequence[Result]) -> Result:
    """Numbers by their medians, everything else as in the first."""
    first = results[0]
    return {
        key: statistics.median(result[key] for result in results)
        if isinstance(value, float)
        else value
        for key, value in first.items()
    }


def quick_ones(measured: Measurements, folders: Sequence[Path], repeats: int) -> Result:
    """The quick contenders in turns: medians."""
    turns: dict[str, list[Result]] = {}
    for turn in range(repeats):
        for name in QUICK:
            check = name == "ours" and turn == 0
            turns.setdefault(name, []).append(measured.of(name, folders, turn, check=check))
        for name in ALONE:
            found = measured.of(name, folders, turn, threads=1)
            turns.setdefault(f"{name}_1", []).append(found)
        for name in ("read", "ours"):
            found = measured.of(name, folders, turn, cold=True)
            turns.setdefault(f"{name}_cold", []).append(found)
    return {name: median_of(results) for name, results in turns.items()}


def ratios(found: Result) -> Result:
    """How ours compares with each of the others."""
    mine = found["ours"]
    compared: Result = {}
    for name, other in found.items():
        if name in (*QUICK[1:], *SLOW):
            cpu = other.get("products_cpu_seconds", other["cpu_seconds"])
            wall = other.get("products_wall_seconds", other["wall_seconds"])
            compared[name] = {
                "cpu": mine["cpu_seconds"] / cpu,
                "wall": mine["wall_seconds"] / wall,
                "peak": mine["megabytes_peak"] / other["megabytes_peak"],
            }
    compared["gram_1"] = {
        "cpu": found["ours_1"]["cpu_seconds"] / found["gram_1"]["products_cpu_seconds"]
    }
    compared["read_cold"] = {
        "wall": found["ours_cold"]["wall_seconds"] / found["read_cold"]["wall_seconds"]
    }
    return compared


def targets(few: Result, many: Result, most: Result | None) -> Result:
    """The issue's targets: what was seen, the limit, and whether it is kept."""
    first, second = ratios(few), ratios(many)
    seen = {
        "10: cpu_seconds": (few["ours"]["cpu_seconds"], 1.6),
        "10: cpu_seconds, one thread": (few["ours_1"]["cpu_seconds"], 1.6),
        "10: wall over reading": (first["read"]["wall"], 2.5),
        "10: wall over reading, cold": (first["read_cold"]["wall"], 2.5),
        "10: megabytes beyond the start": (few["ours"]["megabytes_beyond"], 400.0),
        "50: cpu over its Gram products": (second["gram"]["cpu"], 1.3),
        "50: wall over its Gram products": (second["gram"]["wall"], 1.3),
        "50: cpu over its Gram products, one thread": (second["gram_1"]["cpu"], 1.3),
    }
    if "orthogonal" in many:
        seen["50: cpu over QR and SVD"] = (second["orthogonal"]["cpu"], 0.35)
    for count, found in (("50", many["ours"]), *((("200", most),) if most else ())):
        peak = found["megabytes_peak"] / few["ours"]["megabytes_peak"]
        beyond = found["megabytes_beyond"] / few["ours"]["megabytes_beyond"]
        seen[f"{count}: peak memory over that at 10"] = (peak, 1.15)
        seen[f"{count}: memory beyond the start over that at 10"] = (beyond, 1.15)
    return {
        name: {"seen": round(value, 3), "limit": limit, "reached": value <= limit}
        for name, (value, limit) in seen.items()
    }


def download(layers: int, width: int) -> Result:
    """Bytes that one client is sent, whatever the number of clients."""
    numbers = 4 * layers * RANK * 2 * width
    return {
        "float32": 4 * numbers,
        "bfloat16": 2 * numbers,
        "int8 with a float32 scale for each 64": numbers + 4 * numbers // 64,
    }


def dense_of(measured: Measurements, folders: Sequence[Path], modules: int) -> Result:
    """FlexLoRA's way on one module, and what that makes for all."""
    sample = dict(measured.of("dense", folders))
    for kind in ("cpu", "wall"):
        sample[f"extrapolated_{kind}_seconds"] = modules * sample[f"module_{kind}_seconds"]
    return sample


def measure(arguments: argparse.Namespace, scratch: Path) -> Result:
    """Make the adapters and run everything, the slow ones last."""
    folder = arguments.folder or scratch / "adapters"
    numbers = (10, 50, 200)
    run_script(
        "adapters.py", folder, numbers[-1], "--layers", arguments.layers,
        "--width", arguments.width, "--kind", arguments.kind, "--different", numbers[1],
    )  # fmt: skip
    folders = sorted(folder.glob("client-*"))
    measured = Measurements(arguments.results, scratch)
    found = {
        str(count): quick_ones(measured, folders[:count], arguments.repeats)
        for count in numbers[:2]
    }
    if not arguments.quick:
        found["10"]["intarsia"] = measured.of("intarsia", folders[:10])
        for name in SLOW:
            found["10"][name] = measured.of(name, folders[:10])
        for name in SLOW:
            found["50"][name] = measured.of(name, folders[:50])
        for count in numbers[:2]:
            sample = dense_of(measured, folders[:count], 4 * arguments.layers)
            found[str(count)]["dense, one module extrapolated"] = sample
        found["200"] = {"ours": measured.of("ours", folders[:200])}
    return {
        "kind": arguments.kind,
        "layers": arguments.layers,
        "width": arguments.width,
        "rank": RANK,
        "adapters": found,
        "ratios": {count: ratios(found[count]) for count in ("10", "50")},
        "download_bytes": download(arguments.layers, arguments.width),
        "targets": targets(found["10"], found["50"], found.get("200", {}).get("ours")),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the adapters are, or are to be kept")
    parser.add_argument("--kind", choices=("independent", "shared"), default="independent")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without the slow ones and the 200")
    parser.add_argument(
        "--results", type=Path, help="a file to keep each measurement in, and to go on from"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder and arguments.folder.parent) as scratch:
        print(json.dumps(measure(arguments, Path(scratch)), indent=2))


if __name__ == "__main__":
    main()
