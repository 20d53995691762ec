"""The leakage study: what each caller can find out of groups that it may not use.

Trains an adapter a group, lets callers with different rights ask, and prints DDI and UGI of every
caller and group, with the two figures of the paper, and what two mutants do to them. Homes stay in
the folder: a second run trains nothing again. See docs/leakage.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intarsia_client.errors import InputError
from intarsia_client.files import write_bytes
from intarsia_platform.answering.service import ServiceSettings, open_service
from intarsia_platform.audits.leakage import Leakage, judge_views, paper_figures
from intarsia_platform.audits.views import Exam, View, take_view
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.home import Home
from intarsia_platform.serving.sampling import Sampling
from leakage_figures import draw, table
from leakage_groups import BASE, FULL, REDUCED, Size, prompts_of, read_exams
from leakage_homes import EVERYBODY, NOBODY, intended_rights, open_home, set_rights
from leakage_mutants import filter_late, wrong_rights

SAMPLINGS = (Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=1.0, seed=5))


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is measured, and where it lies.

    Args:
        exams: The groups.
        size: How large.
        base: The base model's folder.
        folder: Where homes and results lie.
    """

    exams: tuple[Exam, ...]
    size: Size
    base: Path
    folder: Path

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(exam.group for exam in self.exams)

    def home(self, name: str, only: Collection[str] | None = None) -> Home:
        place = self.folder / "homes" / name
        return open_home(place, self.exams, self.size, self.base, only)

    def views(self, home: Home, callers: Sequence[str], late: Collection[str] = ()) -> list[View]:
        """What callers get of a home; with ``late``, of a service that filters too late."""
        prompts = prompts_of(self.exams, self.size.prompts)
        settings = ServiceSettings(alone=True, row_tokens=64)
        with open_service(home, base=str(self.base), settings=settings) as service:
            if late:
                filter_late(service, late)
            return [
                take_view(service, caller, self.exams, prompts=prompts, samplings=SAMPLINGS)
                for caller in callers
            ]


def main(words: Sequence[str] | None = None) -> int:
    """Run the study; 1 where the shared data are absent, 7 where the audit is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path(".intarsia/studies/leakage"))
    parser.add_argument("--reduced", action="store_true", help="four small groups")
    options = parser.parse_args(words)
    size = REDUCED if options.reduced else FULL
    base = (options.shared / BASE).resolve()
    try:
        if not base.is_dir():
            raise InputError("base", f"{base} is not there", "name the data's folder with --shared")
        exams = read_exams(options.shared, size)
    except InputError as error:
        sys.stderr.write(f"skipped: {error}\n")
        return 1
    torch.set_num_threads(1)
    folder = options.out / ("reduced" if options.reduced else "full")
    found = run(Study(exams=exams, size=size, base=base, folder=folder))
    return 0 if found["as it must be"] else 7


def run(study: Study) -> dict[str, Any]:
    """Measure, print and write everything.

    Args:
        study: What to measure.

    Returns:
        The results; ``as it must be`` is whether the product is clean and every mutant is found.
    """
    begun = time.monotonic()
    rights = intended_rights(study.groups)
    home = study.home("all")
    set_rights(home, rights)
    _tell("groups trained", begun)
    views = study.views(home, list(rights))
    _tell("views taken", begun)
    alone = views_alone(study, rights)
    _tell("views of homes without the others taken", begun)
    sound = judge_views(views, study.exams, rights, alone=alone)
    readers = {group: view for view, group in zip(views, study.groups, strict=False)}
    paper = paper_figures(readers, study.exams)
    print(table(sound, study.groups), end="\n\n")
    print(_line("sound", sound))
    print(f"paper's DDI (AUC, loss attack) {_spread(paper.ddi)}, UGI {_spread(paper.ugi)}")
    mutants = run_mutants(study, home, rights, views, alone)
    for name, found in mutants.items():
        print(_line(name, found))
    _tell("mutants judged", begun)
    results = {
        "groups": list(study.groups),
        "rights": {name: list(groups) for name, groups in rights.items()},
        "sound": sound.as_mapping(),
        "paper": {"ddi": list(paper.ddi), "ugi": list(paper.ugi)},
        "mutants": {name: found.as_mapping() for name, found in mutants.items()},
        "as it must be": sound.clean and not any(found.clean for found in mutants.values()),
        "seconds": time.monotonic() - begun,
    }
    write_bytes(study.folder / "leakage.json", json.dumps(results, indent=2).encode())
    for name, found in {"sound": sound, **mutants}.items():
        draw(found, study.groups, study.folder / f"{name.replace(' ', '-')}.png")
    return results


def views_alone(study: Study, rights: Mapping[str, tuple[str, ...]]) -> dict[str, View]:
    """Each caller's view of a home that never had a group that the caller may not use."""
    found = {}
    for caller, groups in rights.items():
        if caller == EVERYBODY:
            continue
        home = study.home(f"only-{caller}", groups)
        set_rights(home, {caller: groups})
        (found[caller],) = study.views(home, [caller])
    return found


def run_mutants(
    study: Study,
    home: Home,
    rights: Mapping[str, tuple[str, ...]],
    views: Sequence[View],
    alone: Mapping[str, View],
) -> dict[str, Leakage]:
    """What the audit says of homes that do leak."""
    with open_groups(home) as lifecycle:
        everything = {group.adapter_digest for group in lifecycle.groups.list()}
    callers = [caller for caller in rights if caller not in (EVERYBODY, NOBODY)]
    kept = [view for view in views if view.principal in (EVERYBODY, NOBODY)]
    late = study.views(home, callers, late=everything)
    victim, group = callers[0], study.groups[-1]
    set_rights(home, wrong_rights(rights, victim, group))
    try:
        (given,) = study.views(home, [victim])
    finally:
        set_rights(home, rights)
    others = [view for view in views if view.principal != victim]
    return {
        "access after retrieval": judge_views([*late, *kept], study.exams, rights, alone=alone),
        "one right too many": judge_views([given, *others], study.exams, rights, alone=alone),
    }


def _line(name: str, found: Leakage) -> str:
    cells = [
        f"{cell.principal} and {cell.group}: {'; '.join(cell.findings)}"
        for cell in found.cells
        if cell.findings
    ]
    changed = f"{len(found.changed)} of {len(found.compared)} views differ from a clean home's"
    return f"{name}: {'clean' if found.clean else 'LEAKS'}; {changed}" + "".join(
        f"\n  {cell}" for cell in cells
    )


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def _tell(words: str, begun: float) -> None:
    sys.stderr.write(f"{time.monotonic() - begun:.0f} s: {words}\n")
