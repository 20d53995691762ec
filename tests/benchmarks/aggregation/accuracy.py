"""How far our result is from the best approximation, on the first and the last module.

python tests/benchmarks/aggregation/accuracy.py RANK RESULT DIR...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from intarsia_aggregators.factors import Term, cut_energy, decompose, stack
from intarsia_client.opened import open_adapter


def main() -> None:
    """Compare in float64, without a dense matrix, and print."""
    rank, result, *folders = int(sys.argv[1]), *map(Path, sys.argv[2:])
    adapters, found = [open_adapter(folder) for folder in folders], open_adapter(result)
    names = list(found.modules)
    compared = {}
    for name in (names[0], names[-1]):
        terms = [Term(weight=1 / len(adapters), factors=one.modules[name]) for one in adapters]
        b, a = stack(terms)
        whole = decompose(b, a)
        ours_b, ours_a = stack([Term(weight=-1.0, factors=found.modules[name])])
        rest = decompose(torch.cat([b, ours_b], 1), torch.cat([a, ours_a], 0))
        energy = float(whole.sigma.square().sum())
        best = float(np.sqrt(cut_energy(whole, rank)))
        error = float(np.sqrt(float(rest.sigma.square().sum()) / energy))
        compared[name] = {"relative_error": error, "best": best, "over_best": error / best}
    print(json.dumps(compared))


if __name__ == "__main__":
    main()
