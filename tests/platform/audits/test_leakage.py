"""The audit on real groups: what it says of the product, and of homes that do leak."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from intarsia_client.errors import AccessError, InputError
from intarsia_client.records import Record
from intarsia_platform.audits.leakage import LeakageSettings, judge_views, paper_figures
from intarsia_platform.audits.views import Exam, take_view
from intarsia_platform.groups.lifecycle import open_groups

# Where the study's files lie: its mutants are the ones to be found.
sys.path.append(str(Path(__file__).resolve().parents[2] / "studies" / "leakage"))

from leakage_mutants import filter_late

INTENDED = {"keeper": ("press", "vault"), "clerk": ("press",), "visitor": ()}
CALLERS = tuple(INTENDED)
QUICK = LeakageSettings(resamples=500, permutations=1999)


def exams_of(texts):
    """Each group's records, and as many of the same form that nobody was trained on."""
    return tuple(
        Exam(
            group=group,
            members=[Record(text=text) for text in own],
            others=[Record(text=text) for text in texts.others(len(own), seed=seed)],
        )
        for group, own, seed in (("vault", texts.vault[1:], 5), ("press", texts.press, 6))
    )


def views_of(service, texts, callers=CALLERS):
    return [
        take_view(service, caller, exams_of(texts), prompts=[texts.prefix, "Codes:"])
        for caller in callers
    ]


def cell_of(found, principal, group):
    (cell,) = [one for one in found.cells if (one.principal, one.group) == (principal, group)]
    return cell


@pytest.fixture(scope="module")
def sound(trained, served, texts):
    """What everybody gets of the home as it is."""
    from intarsia_platform.home import Home

    with served(Home.open(trained)) as service:
        return views_of(service, texts)


@pytest.fixture(scope="module")
def alone(built, new, served, texts, tmp_path_factory):
    """What the clerk and the visitor get where the vault never was."""
    home = built(tmp_path_factory.mktemp("lean") / "home", [new("press", texts.press)])
    with served(home) as service:
        return {view.principal: view for view in views_of(service, texts, CALLERS[1:])}


def test_the_product_leaks_nothing_and_the_audit_could_have_seen_it(sound, alone, texts):
    found = judge_views(sound, exams_of(texts), INTENDED, alone=alone, settings=QUICK)
    assert found.clean and found.compared == ("clerk", "visitor")
    for group in ("vault", "press"):
        cell = cell_of(found, "keeper", group)
        assert cell.named_ddi.value == cell.named_ddi.low == 1.0
        assert cell.attacks[0].chance.p_value < 0.001
    clerk, visitor = cell_of(found, "clerk", "vault"), cell_of(found, "visitor", "vault")
    assert not clerk.named and clerk.named_ddi is None
    for attack in clerk.attacks:
        assert attack.chance.low <= attack.ddi.value <= attack.chance.high
    assert clerk.ugi.low > 0.5 and clerk.gap > 0.5
    # Whoever has no adapter gets the base's numbers: there is nothing to tell.
    assert (visitor.ddi.value, visitor.attacks[0].chance.p_value) == (0.0, 1.0)
    assert cell_of(found, "clerk", "press").ugi.value == pytest.approx(0.0, abs=1e-6)
    assert found.as_mapping()["cells"][0]["attacks"]["loss"]["p_value"] > 0


def test_views_are_the_same_again_and_tell_models_and_answers(sound, alone, texts):
    keeper, clerk, _ = sound
    assert clerk.digest == alone["clerk"].digest != keeper.digest
    assert clerk.models == ("auto", "base", "press")
    answers = [clerk.answers[f"0 {use} {texts.prefix}"] for use in ("auto", "vault")]
    assert answers[0]["used"][0]["name"] == "press" and "is not one that you may use" in answers[1]


def test_one_right_too_many_is_found(sound, alone, home, served, put_rights, texts):
    put_rights(home, {**INTENDED, "clerk": ("press", "vault")})
    with served(home) as service:
        (given,) = views_of(service, texts, ["clerk"])
    views = [sound[0], given, sound[2]]
    found = judge_views(views, exams_of(texts), INTENDED, alone=alone, settings=QUICK)
    assert not found.clean and found.changed == ("clerk",)
    findings = cell_of(found, "clerk", "vault").findings
    assert "is answered by name" in findings
    assert any("reference attack" in one for one in findings)
    # Without a home to compare with, too.
    assert not judge_views(views, exams_of(texts), INTENDED, settings=QUICK).clean


def test_access_that_is_resolved_after_retrieval_is_found(sound, alone, home, served, texts):
    with open_groups(home) as groups:
        everything = {group.adapter_digest for group in groups.groups.list()}
    with served(home) as service:
        filter_late(service, everything)
        late = views_of(service, texts, ["clerk"])
    views = [sound[0], *late, sound[2]]
    found = judge_views(views, exams_of(texts), INTENDED, alone=alone, settings=QUICK)
    assert not found.clean and found.changed == ("clerk",)


def test_a_right_too_few_and_a_group_of_nobody_are_told(sound, texts):
    exams = exams_of(texts)
    wide = {**INTENDED, "clerk": ("press", "vault")}
    found = judge_views(sound, exams, wide, settings=QUICK)
    assert cell_of(found, "clerk", "vault").findings == (
        "is refused by name, though meant to use it",
    )
    with pytest.raises(InputError, match="audit of group vault: no caller may use it"):
        judge_views(sound[1:], exams, INTENDED, settings=QUICK)


def test_the_papers_figures_are_high_where_domains_are_apart(sound, texts):
    keeper, clerk, _ = sound
    found = paper_figures({"vault": keeper, "press": clerk}, exams_of(texts))
    assert len(found.ddi) == len(found.ugi) == 2
    assert all(0 <= one <= 1 for one in (*found.ddi, *found.ugi))
    # The keeper may use both, so that only the clerk's side is apart.
    assert found.ddi[1] > 0.95 and found.ugi[0] > 0.3


def test_nobody_unknown_is_audited(home, served, texts):
    with served(home) as service, pytest.raises(AccessError):
        take_view(service, "stranger", exams_of(texts))
