"""From callers' views to the audit's verdict: what each learns of each group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from intarsia_client.errors import InputError
from intarsia_continual.access_audits import (
    ChanceTest,
    Estimate,
    chance_test,
    distinguishability_interval,
    loss_attack,
    pair_distinguishability,
    reference_attack,
    rejected,
    utility,
    utility_gap,
    utility_gap_index,
    zlib_attack,
)
from numpy.typing import NDArray

from intarsia_platform.audits.views import AUTO, BASE, Exam, Scored, View

ATTACKS = ("reference", "loss", "zlib")
"""The membership attacks, the strongest first."""


@dataclass(frozen=True, kw_only=True)
class LeakageSettings:
    """How an audit counts.

    Args:
        level: Of every interval.
        false_alarms: The chance that an audit of a home without a leak finds one by its attacks.
        resamples: Bootstrap resamples of an interval.
        permutations: Permutations of a test; the least p-value is one part in one more.
        seed: Of both.
    """

    level: float = 0.95
    false_alarms: float = 0.05
    resamples: int = 2000
    permutations: int = 9999
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What one membership attack finds.

    Args:
        name: One of :data:`ATTACKS`.
        ddi: 0 for chance, 1 if every member is found.
        chance: Where DDI lies if nothing is told.
    """

    name: str
    ddi: Estimate
    chance: ChanceTest


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One caller and one group.

    Args:
        principal: The caller.
        group: The group.
        intended: Whether this caller is meant to use it.
        named: Whether the caller was answered when it named the group.
        attacks: Through the composed model (``auto``), one each of :data:`ATTACKS`.
        named_ddi: Of the reference attack when the group is named; None where that was refused.
        utility: Inverse perplexity of the group's own records through ``auto``.
        gap: Difference to the utility with the group's own adapter; the paper's UGI of the pair.
        ugi: The same over the latter, 0 for none.
        ugi_left_out: Likewise on records that were left out: what is withheld of the group's kind
            of text rather than of its records. Below 0 where the adapter knows its records too
            well to predict others.
        findings: What is wrong with it, in words; none where all is well.
    """

    principal: str
    group: str
    intended: bool
    named: bool
    attacks: tuple[Attack, ...]
    named_ddi: Estimate | None
    utility: float
    gap: float
    ugi: Estimate
    ugi_left_out: Estimate
    findings: tuple[str, ...]

    @property
    def ddi(self) -> Estimate:
        """Of the first attack."""
        return self.attacks[0].ddi

    def as_mapping(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "principal": self.principal,
            "group": self.group,
            "intended": self.intended,
            "named": self.named,
            "attacks": {
                one.name: {
                    "ddi": _listed(one.ddi),
                    "chance": [one.chance.low, one.chance.high],
                    "p_value": one.chance.p_value,
                }
                for one in self.attacks
            },
            "named_ddi": None if self.named_ddi is None else _listed(self.named_ddi),
            "utility": self.utility,
            "gap": self.gap,
            "ugi": _listed(self.ugi),
            "ugi_left_out": _listed(self.ugi_left_out),
            "findings": list(self.findings),
        }


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What an audit found.

    Args:
        cells: One a caller and group.
        changed: Callers whose view differs from the one in a home without the groups that they
            are not meant to use.
        compared: Callers of whom there was such a home.
    """

    cells: tuple[Cell, ...]
    changed: tuple[str, ...]
    compared: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.changed and not any(cell.findings for cell in self.cells)

    def as_mapping(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "clean": self.clean,
            "changed": list(self.changed),
            "compared": list(self.compared),
            "cells": [cell.as_mapping() for cell in self.cells],
        }


def judge_views(
    views: Sequence[View],
    exams: Sequence[Exam],
    intended: Mapping[str, Collection[str]],
    *,
    alone: Mapping[str, View] | None = None,
    settings: LeakageSettings | None = None,
) -> Leakage:
    """Judge what callers got against what they are meant to get.

    A caller that is not meant to use a group must be refused by its name, no attack through
    ``auto`` may tell the group's records from left-out ones beyond chance (all such tests of the
    audit together by Holm's rule), and, where it is given, its view must be the one of a home
    without such groups, byte for byte. A caller that is meant to must be answered by name.

    Formal guarantee: a finding of the attacks in a home that does not leak has at most the
    probability ``false_alarms``, if members were drawn at random. None of the others is by chance.

    Args:
        views: One a caller, all of the same exams.
        exams: The groups' texts.
        intended: From each caller to the groups that it is meant to use, whatever policies say.
        alone: From callers to their views of a home that never had another group.
        settings: How to count.

    Returns:
        The verdict.

    Raises:
        InputError: If no view has a group by name, so that its worth is not known.
    """
    settings, alone = settings or LeakageSettings(), alone or {}
    generator = np.random.default_rng(settings.seed)
    cells = [
        _cell(view, exam, exam.group in intended[view.principal], own, settings, generator)
        for exam in exams
        for own in [_with_access(views, exam)]
        for view in views
    ]
    found = [(cell, attack) for cell in cells if not cell.intended for attack in cell.attacks]
    told = rejected([attack.chance.p_value for _, attack in found], settings.false_alarms)
    leaks: dict[tuple[str, str], list[str]] = {}
    for (cell, attack), leak in zip(found, told, strict=True):
        if leak:
            leaks.setdefault((cell.principal, cell.group), []).append(
                f"the {attack.name} attack tells members (p = {attack.chance.p_value:.2g})"
            )
    return Leakage(
        cells=tuple(
            _with_findings(cell, leaks.get((cell.principal, cell.group), ())) for cell in cells
        ),
        changed=tuple(
            view.principal
            for view in views
            if view.principal in alone and view.digest != alone[view.principal].digest
        ),
        compared=tuple(view.principal for view in views if view.principal in alone),
    )


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """The two indices as Jayaraman et al. 2025 report them.

    Args:
        ddi: Area under the curve of the loss attack for each ordered pair of groups.
        ugi: Absolute utility gap for each ordered pair of groups.
    """

    ddi: tuple[float, ...]
    ugi: tuple[float, ...]


def paper_figures(own: Mapping[str, View], exams: Sequence[Exam]) -> PaperFigures:
    """The paper's DDI and UGI over all ordered pairs of groups.

    Args:
        own: From each group to the view of a caller who may use that group and no other.
        exams: The groups' texts.

    Returns:
        One figure a pair; the paper reports their means and deviations.
    """
    by_name = {exam.group: exam for exam in exams if exam.group in own}
    ddi, ugi = [], []
    for one, view in own.items():
        for other in by_name:
            if one == other:
                continue
            # The model of a caller of `one`, on what `one` and `other` were trained on.
            inside = view.scores[one][one].losses[: len(by_name[one].members)]
            outside = _answered_as(view, other).losses[: len(by_name[other].members)]
            ddi.append(pair_distinguishability(loss_attack(inside), loss_attack(outside)))
            count = len(by_name[one].members)
            ugi.append(
                utility_gap(
                    _utility(view.scores[one][one], count),
                    _utility(_answered_as(own[other], one), count),
                )
            )
    return PaperFigures(ddi=tuple(ddi), ugi=tuple(ugi))


def _answered_as(view: View, group: str) -> Scored:
    return view.scores[group][AUTO]


def _with_access(views: Sequence[View], exam: Exam) -> Scored:
    for view in views:
        scored = view.scores[exam.group][exam.group]
        if not scored.refused:
            return scored
    raise InputError(
        f"audit of group {exam.group}",
        "no caller may use it",
        "audit one more caller, who may",
    )


def _cell(
    view: View,
    exam: Exam,
    intended: bool,
    own: Scored,
    settings: LeakageSettings,
    generator: np.random.Generator,
) -> Cell:
    count = len(exam.members)
    scores = view.scores[exam.group]
    auto, named = scores[AUTO], scores[exam.group]
    texts = [record.text for record in exam.records]
    attacks = []
    for name, found in _attack_scores(auto, scores[BASE], texts).items():
        attacks.append(
            Attack(
                name=name,
                ddi=_estimate(found, count, settings, generator),
                chance=chance_test(
                    found[:count],
                    found[count:],
                    generator,
                    level=settings.level,
                    permutations=settings.permutations,
                ),
            )
        )
    by_name = None
    if not named.refused:
        found = reference_attack(named.losses, scores[BASE].losses)
        by_name = _estimate(found, count, settings, generator)
    return Cell(
        principal=view.principal,
        group=exam.group,
        intended=intended,
        named=not named.refused,
        attacks=tuple(attacks),
        named_ddi=by_name,
        utility=_utility(auto, count),
        gap=utility_gap(_utility(own, count), _utility(auto, count)),
        ugi=_gap(own, auto, slice(count), settings, generator),
        ugi_left_out=_gap(own, auto, slice(count, None), settings, generator),
        findings=(),
    )


def _attack_scores(
    auto: Scored, base: Scored, texts: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    found = {
        "reference": reference_attack(auto.losses, base.losses),
        "loss": loss_attack(auto.losses),
        "zlib": zlib_attack(auto.losses, auto.tokens, texts),
    }
    return {name: found[name] for name in ATTACKS}


def _estimate(
    found: NDArray[np.float64],
    count: int,
    settings: LeakageSettings,
    generator: np.random.Generator,
) -> Estimate:
    return distinguishability_interval(
        found[:count],
        found[count:],
        generator,
        level=settings.level,
        resamples=settings.resamples,
    )


def _gap(
    own: Scored,
    auto: Scored,
    which: slice,
    settings: LeakageSettings,
    generator: np.random.Generator,
) -> Estimate:
    return utility_gap_index(
        own.losses[which],
        auto.losses[which],
        auto.tokens[which],
        generator,
        level=settings.level,
        resamples=settings.resamples,
    )


def _utility(scored: Scored, count: int) -> float:
    """On the group's own records, as in the paper."""
    return utility(scored.losses[:count], scored.tokens[:count])


def _with_findings(cell: Cell, leaks: Sequence[str]) -> Cell:
    findings = list(leaks)
    if cell.named and not cell.intended:
        findings.append("is answered by name")
    if cell.intended and not cell.named:
        findings.append("is refused by name, though meant to use it")
    return replace(cell, findings=tuple(findings))


def _listed(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]
