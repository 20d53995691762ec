"""Aggregation of Llama-7B-shaped adapters: ours beside the ways of the field, on the same files.

    python tests/benchmarks/aggregation/run.py [--folder DIR] [--kind shared] [--repeats 3]

Writes adapters of 32 x (q, k, v, o) modules of 4096 x 4096 with FLoRA's ranks (0.67 GB for 10, 3.4
GB for 50; the 200 are hard links to the 50), runs each contender in a process of its own, the quick
ones in turns, and prints one JSON object with the figures, their ratios and whether each target is
reached. The files are deleted at the end unless ``--folder`` names where to keep them.
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
    """Run one contender; its result stays in ``out`` only if it is ours."""
    words = ["--rank", RANK, "--out", out, *(["--cold"] if cold else [])]
    try:
        return run_script("contenders.py", name, *words, *folders, threads=threads)
    finally:
        if name != "ours":
            shutil.rmtree(out, ignore_errors=True)


def median_of(results: Sequence[Result]) -> Result:
    """Numbers by their medians, everything else as in the first."""
    first = results[0]
    return {
        key: statistics.median(result[key] for result in results)
        if isinstance(value, float)
        else value
        for key, value in first.items()
    }


def compare(folders: Sequence[Path], scratch: Path, repeats: int, slow: Sequence[str]) -> Result:
    """All contenders on one number of adapters."""
    turns: dict[str, list[Result]] = {name: [] for name in (*QUICK, *(f"{n}_1" for n in ALONE))}
    errors: Result = {}
    for _ in range(repeats):
        for name in QUICK:
            out = scratch / f"{name}-out"
            turns[name].append(contend(name, folders, out))
            if name == "ours":
                if not errors:
                    errors = run_script("accuracy.py", RANK, out, *folders)
                shutil.rmtree(out)
        for name in ALONE:
            turns[f"{name}_1"].append(contend(name, folders, scratch / "one-out", threads=1))
            shutil.rmtree(scratch / "one-out", ignore_errors=True)
    found = {name: median_of(results) for name, results in turns.items()}
    for name in slow:
        found[name] = contend(name, folders, scratch / "out")
    for name in ("read", "ours"):
        found[f"{name}_cold"] = contend(name, folders, scratch / f"{name}-out", cold=True)
    shutil.rmtree(scratch / "ours-out")
    found["accuracy"] = errors
    return found


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


def measure(arguments: argparse.Namespace, scratch: Path) -> Result:
    """Make the adapters and run everything."""
    folder = arguments.folder or scratch / "adapters"
    numbers = (10, 50, 200)
    run_script(
        "adapters.py", folder, numbers[-1], "--layers", arguments.layers,
        "--width", arguments.width, "--kind", arguments.kind, "--different", numbers[1],
    )  # fmt: skip
    folders = sorted(folder.glob("client-*"))
    slow = () if arguments.quick else SLOW
    found = {
        str(count): compare(folders[:count], scratch, arguments.repeats, slow)
        for count in numbers[:2]
    }
    if not arguments.quick:
        for count in numbers[:2]:
            sample = contend("dense", folders[:count], scratch / "out")
            modules = 4 * arguments.layers
            sample["extrapolated_cpu_seconds"] = modules * sample["module_cpu_seconds"]
            sample["extrapolated_wall_seconds"] = modules * sample["module_wall_seconds"]
            found[str(count)]["dense, one module extrapolated"] = sample
    most = None
    if not arguments.quick:
        most = contend("intarsia", folders[:200], scratch / "out")
        found["200"] = {"intarsia": most}
        found["10"]["intarsia"] = contend("intarsia", folders[:10], scratch / "out")
    return {
        "kind": arguments.kind,
        "layers": arguments.layers,
        "width": arguments.width,
        "rank": RANK,
        "adapters": found,
        "ratios": {count: ratios(found[count]) for count in ("10", "50")},
        "download_bytes": download(arguments.layers, arguments.width),
        "targets": targets(found["10"], found["50"], most),
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder and arguments.folder.parent) as scratch:
        print(json.dumps(measure(arguments, Path(scratch)), indent=2))


if __name__ == "__main__":
    main()
