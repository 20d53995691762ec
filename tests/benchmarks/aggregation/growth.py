"""How CPU time, memory and bytes grow with the number of adapters, at a small width.

    python tests/benchmarks/aggregation/growth.py [--numbers 10 30 100 300 1000]

The adapters have 8 modules of 512 x 512 and FLoRA's ranks; the result has rank 64. From some 100
adapters on a module's stack has more directions than the layer; from 1,000 on it is no longer held
but read again for each pass. Each number runs in a process of its own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from adapters import RANKS
from run import RANK, contend, run_script

LAYERS, WIDTH = 2, 512


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapters"
        run_script(
            "adapters.py", folder, max(arguments.numbers), "--layers", arguments.layers,
            "--width", arguments.width,
        )  # fmt: skip
        folders = sorted(folder.glob("client-*"))
        for count in arguments.numbers:
            found = contend("ours", folders[:count], Path(scratch) / "out")
            size = sum(file.stat().st_size for file in (Path(scratch) / "out").iterdir())
            shutil.rmtree(Path(scratch) / "out")
            rows.append(
                {
                    "adapters": count,
                    "summed_rank": sum(RANKS[index % len(RANKS)] for index in range(count)),
                    "bytes_read": sum(
                        (one / "adapter_model.safetensors").stat().st_size
                        for one in folders[:count]
                    ),
                    "bytes_written": size,
                    **{name: found[name] for name in ("cpu_seconds", "wall_seconds", "workers")},
                    **{key: found[key] for key in found if key.startswith("megabytes")},
                }
            )
    first, last = rows[0], rows[-1]
    print(
        json.dumps(
            {
                "modules": 4 * arguments.layers,
                "width": arguments.width,
                "rank": RANK,
                "numbers": rows,
                "last_over_first": {
                    name: last[name] / first[name]
                    for name in ("adapters", "bytes_read", "bytes_written", "cpu_seconds",
                                 "megabytes_peak", "megabytes_beyond")
                },
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
