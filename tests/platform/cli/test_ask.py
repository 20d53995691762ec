"""``intarsia ask`` and ``intarsia score``, as the owner of a home types them."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

STORIES = Path(__file__).parents[4] / "shared/data/stories260k/hf"
TEXTS = {
    "sea": [
        f"The ship sailed to harbour {n} and the captain dropped the anchor." for n in range(8)
    ],
    "farm": [f"The farmer fed {n} cows and the hens slept in the red barn." for n in range(8)],
}
POLICIES = """\
@id("own-groups")
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
"""
USERS = [
    {"uid": {"type": "User", "id": name}, "parents": [],
     "attrs": {"groups": groups, "clearance": 0, "tenant": ""}}
    for name, groups in (("ann", ["sea"]), ("bob", []), ("all", ["sea", "farm"]))
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with two groups and no policies."""
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip(f"{STORIES} is not there")
    from intarsia_client.records import Record
    from intarsia_platform.groups.lifecycle import open_groups
    from intarsia_platform.groups.new_group import NewGroup
    from intarsia_platform.groups.rows import GroupSettings
    from intarsia_platform.home import Home

    home = Home.open(tmp_path_factory.mktemp("asked") / "home")
    settings = GroupSettings(rank=4, epochs=4, batch_size=4, encoder="base")
    with open_groups(home) as groups:
        for name, texts in TEXTS.items():
            records = [Record(text=text) for text in texts]
            groups.add(NewGroup(name=name, base=str(STORIES), records=records, labels=[name],
                                settings=settings))  # fmt: skip
    return home.path


@pytest.fixture
def bare(trained):
    shutil.copytree(trained, "home")
    return ("--home", "home")


@pytest.fixture
def home(bare, intarsia):
    Path("p.cedar").write_text(POLICIES)
    Path("e.json").write_text(json.dumps(USERS))
    words = ("policy", "set", "--policies", "p.cedar", "--entities", "e.json", *bare)
    assert intarsia(*words).code == 0
    return bare


def ask(intarsia, home, *words, prompt="The captain of the ship"):
    return intarsia("ask", prompt, "--max-tokens", 6, *words, *home)


def test_the_json_is_as_documented_and_the_text_is_shown(intarsia, home):
    words = ("--as", "all", "--use", "sea=3,farm", "--seed", 1, "--temperature", 0.9)
    shown = ask(intarsia, home, *words, "--json", "a.json")
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(Path("a.json").read_text())
    assert list(found) == ["text", "used", "labels", "tokens"]
    assert {one["name"]: one["weight"] for one in found["used"]} == {"sea": 0.75, "farm": 0.25}
    assert all(one["adapter"].startswith("sha256:") for one in found["used"])
    assert (found["labels"], found["tokens"]) == (["farm", "sea"], 6)
    assert shown.out == found["text"] + "\n"
    again = ask(intarsia, home, *words, "--json", "-")
    assert json.loads(again.out) == found


def test_why_shows_what_was_used_and_what_permitted_it(intarsia, home):
    text = TEXTS["sea"][3]
    ended = ask(intarsia, home, "--as", "ann", "--why", "--json", "a.json", prompt=text)
    why = json.loads(Path("a.json").read_text())["why"]
    assert why["chosen_by"] == "retrieval" and why["granted"] == ["sea"]
    (one,) = why["adapters"]
    assert (one["name"], one["labels"]) == ("sea", ["sea"])
    assert [policy.split()[0] for policy in one["policies"]] == ["own-groups"]
    assert "own-groups" in ended.out and "retrieval" in ended.out
    words = ("--routing", "lag", "--top-k", 2, "--threshold", "none", "--why", "--json", "b.json")
    ended = ask(intarsia, home, "--as", "all", *words, prompt=text)
    why = json.loads(Path("b.json").read_text())["why"]
    assert why["chosen_by"] == "retrieval, lag by token and layer"
    assert {one["name"]: one["weight"] for one in why["adapters"]} == {"farm": 0.5, "sea": 0.5}
    ended = ask(intarsia, home, "--as", "bob", "--why")
    assert "the base answered alone, none may be used; may use no adapter" in ended.out


def test_refused_and_unknown_exit_with_3_and_the_same_words(intarsia, home):
    Path("r.jsonl").write_text('{"text": "The sea."}\n')
    lines = set()
    for name in ("farm", "moon"):
        ended = ask(intarsia, home, "--as", "ann", "--use", name)
        assert (ended.code, ended.out) == (3, "")
        lines.add(ended.line.replace(name, "NAME"))
        ended = intarsia("score", "r.jsonl", "--as", "ann", "--use", name, *home)
        assert ended.code == 3
        lines.add(ended.line.replace(name, "NAME"))
    assert len(lines) == 1
    stranger = ask(intarsia, home, "--as", "eve")
    assert stranger.code == 3 and "principal eve: is not one that you may use" in stranger.line


def test_without_policies_one_line_says_that_only_the_base_may_be_used(intarsia, bare):
    ended = ask(intarsia, bare, "--as", "ann")
    assert ended.code == 0 and ended.out.strip()
    assert "no policies are set, so only the base may be used" in ended.line
    assert ask(intarsia, bare, "--as", "ann", "--use", "sea").code == 3


@pytest.mark.parametrize(
    "words",
    [("--use", "sea=x"), ("--max-tokens", 0), ("--temperature", -1), ("--seed", -1),
     ("--base", "nowhere/at-all"), ("--top-k", 0), ("--top-k", 17), ("--routing", "best"),
     ("--threshold", "2"), ("--threshold", "some")],
)  # fmt: skip
def test_bad_words_exit_with_2_in_one_line(intarsia, home, words):
    ended = intarsia("ask", "x", "--as", "ann", *words, *home)
    assert ended.code == 2 and ended.line


def test_scores_tell_who_may_use_what(intarsia, home):
    lines = [json.dumps({"text": text}) for text in TEXTS["farm"]]
    Path("r.jsonl").write_text("\n".join(lines))
    found = {}
    for principal in ("ann", "bob", "all"):
        words = ("--as", principal, "--use", "farm" if principal == "all" else "auto")
        ended = intarsia("score", "r.jsonl", *words, "--json", "s.json", *home)
        assert (ended.code, ended.err) == (0, "")
        found[principal] = json.loads(Path("s.json").read_text())
        assert f"{found[principal]['perplexity']:.4g}" in ended.out
    assert list(found["all"]) == ["perplexity", "accuracy", "records"]
    assert found["all"]["perplexity"] < 0.9 * found["bob"]["perplexity"]
    records = found["all"]["records"]
    assert len(records) == 8 and set(records[0]) == {"loss", "tokens", "used"}
    nats = sum(one["loss"] * one["tokens"] for one in records)
    assert math.exp(nats / sum(one["tokens"] for one in records)) == pytest.approx(
        found["all"]["perplexity"]
    )
    assert {used["name"] for one in records for used in one["used"]} == {"farm"}
    assert not any(
        used["name"] == "farm" for one in found["ann"]["records"] for used in one["used"]
    )
    assert all(one["used"] == [] for one in found["bob"]["records"])
